"""Load and faults of the labelling page: a real server, labelers over HTTP, and what the store holds afterwards.

    python scripts/feedback_load.py                  all of it, about four minutes
    python scripts/feedback_load.py --only load      load | kills | two | locked | full
    python scripts/feedback_load.py --kills 3 --judgements 200     a short one

    load    20 labelers, 2,000 judgements at 50 per second: milliseconds of an answer and of the next page, none lost,
            none twice
    kills   20 SIGKILLs of the server while judgements arrive: every acknowledged one is there, none twice
    two     two servers on one SQLite file
    locked  another process holds the file: one line, nothing lost, and the same form is taken afterwards
    full    the disk is full: the same (in a small file system in memory: needs root)

Each prints a line, and the exit code is 1 if one of them fails.
"""

from __future__ import annotations

import argparse
import contextlib
import html
import http.client
import os
import re
import secrets
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

from rlhf_lightning.feedback import FeedbackStore, Response, Task, task_id

BOUND = 100.0  # milliseconds within which 95 % of the answers must be accepted
LABELERS = 20
SERVER = """
import sys
from rlhf_lightning.feedback import FeedbackStore
from rlhf_lightning.feedback.pages.serving import Serving, serve

store = FeedbackStore(sys.argv[1], patience=float(sys.argv[3]))
serve(store, Serving(port=int(sys.argv[2])), lambda line: print(line, flush=True))
"""


@dataclass
class Server:
    """A server in a separate process, on a port that it keeps."""

    url: str
    patience: float = 10.0
    port: int = 0
    process: subprocess.Popen[str] | None = None

    def start(self) -> Server:
        """Start it, and wait until it serves."""
        if not self.port:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.port = free.getsockname()[1]
        command = [sys.executable, "-c", SERVER, self.url, str(self.port), str(self.patience)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("serving"):
                return self
        raise SystemExit("the server did not start")

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@dataclass
class Labeler:
    """A labeler's browser, without the browser."""

    name: str
    port: int
    patient: bool = False  # send a form again until it is acknowledged
    cookie: str = ""
    answers: list[float] = field(default_factory=list)  # milliseconds
    pages: list[float] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)  # keys of forms
    connection: http.client.HTTPConnection | None = None

    def request(self, method: str, path: str, form: dict[str, str] | None = None) -> tuple[int, str]:
        """Send a request, and again if the server goes away and the labeler is patient."""
        while True:
            try:
                return self._request(method, path, form)
            except (OSError, http.client.HTTPException):
                self.connection = None
                if not self.patient:
                    raise
                time.sleep(0.05)

    def _request(self, method: str, path: str, form: dict[str, str] | None) -> tuple[int, str]:
        if self.connection is None:
            self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"Cookie": self.cookie, "Content-Type": "application/x-www-form-urlencoded"}
        self.connection.request(method, path, urlencode(form) if form else None, headers)
        answer = self.connection.getresponse()
        text = answer.read().decode()
        if answer.status == 303 and (given := answer.getheader("Set-Cookie")):
            self.cookie = given.partition(";")[0]
        return answer.status, text

    def enter(self) -> None:
        """Open the personal link."""
        self.request("GET", f"/enter/{self.name}")

    def open(self) -> dict[str, str] | None:
        """Read the page of the next task, and return its form; None if nothing is left."""
        start = time.perf_counter()
        _, page = self.request("GET", "/")
        self.pages.append(1000 * (time.perf_counter() - start))
        fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page))
        return {name: html.unescape(value) for name, value in fields.items()} if "task" in fields else None

    def send(self, form: dict[str, str]) -> int:
        """Answer, and return the status; 303 is the acknowledgement."""
        start = time.perf_counter()
        status, _ = self.request("POST", "/answer", {**form, "answer": secrets.choice(["a1", "a3", "tie", "b2"])})
        self.answers.append(1000 * (time.perf_counter() - start))
        if status == 303:
            self.acknowledged.append(form["key"])
        return status


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=[*PARTS], help="one of them")
    parser.add_argument("--judgements", type=int, default=2000, help="of the load")
    parser.add_argument("--rate", type=float, default=50.0, help="judgements per second")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--folder", type=Path, help="where the stores are made; default: a temporary folder")
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} CPU cores, load average {os.getloadavg()[0]:.1f}", flush=True)
    held = []
    for name, part in PARTS.items():
        if arguments.only in (None, name):
            with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
                said, good = part(Path(folder), arguments)
            held.append(good)
            print(f"{'good' if good else 'BAD '} {name}: {said}", flush=True)
    return 0 if all(held) else 1


def made(folder: Path, count: int, labelers: int = LABELERS) -> str:
    """Return a store of this many tasks."""
    url = f"sqlite:///{folder}/feedback.db"
    with FeedbackStore(url) as store:
        store.add_tasks(_task(i) for i in range(count))
        for i in range(labelers):
            store.add_labeler(f"labeler{i}", link=False)
    return url


def _task(number: int) -> Task:
    texts = (f"answer {number} " + "word " * 60, f"another answer {number} " + "text " * 80)
    return Task(task_id("pair", f"prompt {number}", texts), "pair", f"prompt {number}", tuple(map(Response, texts)))


def kept(url: str, acknowledged: list[str]) -> tuple[int, int, int]:
    """Return a store's judgements, the acknowledged ones that it lacks, and tasks judged more than once."""
    with FeedbackStore(url) as store:
        with store.reading() as connection:
            keys = {row[0] for row in connection.exec_driver_sql("SELECT key FROM judgements")}
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
        twice = sum(count > 1 for count in Counter(judgement.task for judgement in store.judgements()).values())
    return len(keys), len(set(acknowledged) - keys), twice


@contextlib.contextmanager
def at_work(labelers: list[Labeler], work: Callable[[Labeler], object]) -> Iterator[None]:
    """Run each labeler in a separate thread, until all are done."""
    failed: list[BaseException] = []

    def run(labeler: Labeler) -> None:
        try:
            work(labeler)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(labeler,), daemon=True) for labeler in labelers]
    for thread in threads:
        thread.start()
    yield
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def load(folder: Path, arguments: argparse.Namespace) -> tuple[str, bool]:
    each = arguments.judgements // LABELERS
    url = made(folder, each * LABELERS)
    server = Server(url).start()
    labelers = [Labeler(f"labeler{i}", server.port) for i in range(LABELERS)]
    begin = time.monotonic() + 1.0

    def work(labeler: Labeler) -> None:
        labeler.enter()
        offset = labelers.index(labeler) / arguments.rate
        for i in range(each):
            form = labeler.open()
            assert form is not None
            time.sleep(max(0.0, begin + offset + i * LABELERS / arguments.rate - time.monotonic()))
            assert labeler.send(form) == 303

    with at_work(labelers, work):
        pass
    seconds = time.monotonic() - begin
    server.kill()
    answers = [took for labeler in labelers for took in labeler.answers]
    pages = [took for labeler in labelers for took in labeler.pages]
    acknowledged = [key for labeler in labelers for key in labeler.acknowledged]
    count, lost, twice = kept(url, acknowledged)
    p95 = statistics.quantiles(answers, n=20)[18]
    said = (
        f"{LABELERS} labelers, {count} judgements in {seconds:.0f} s ({count / seconds:.0f} per second); an answer "
        f"takes {statistics.median(answers):.0f} ms (95 %: {p95:.0f} ms), a page {statistics.median(pages):.0f} ms "
        f"(95 %: {statistics.quantiles(pages, n=20)[18]:.0f} ms); {lost} lost, {twice} twice"
    )
    return said, p95 <= BOUND and not lost and not twice and count == each * LABELERS


def kills(folder: Path, arguments: argparse.Namespace) -> tuple[str, bool]:
    url = made(folder, 20_000, 4)
    server = Server(url).start()
    labelers = [Labeler(f"labeler{i}", server.port, patient=True) for i in range(4)]
    over = threading.Event()

    def work(labeler: Labeler) -> None:
        labeler.enter()
        while not over.is_set() and (form := labeler.open()) is not None:
            assert labeler.send(form) in (303, 409)  # 409: acknowledged, but the answer was lost on the way

    with at_work(labelers, work):
        for number in range(arguments.kills):
            enough = sum(len(labeler.acknowledged) for labeler in labelers) + 5 + number % 7
            while sum(len(labeler.acknowledged) for labeler in labelers) < enough:
                time.sleep(0.003)
            server.kill()
            server.start()
        over.set()
    server.kill()
    acknowledged = [key for labeler in labelers for key in labeler.acknowledged]
    count, lost, twice = kept(url, acknowledged)
    said = f"{arguments.kills} SIGKILLs, {len(acknowledged)} judgements acknowledged, {count} in the store; "
    return said + f"{lost} lost, {twice} twice", not lost and not twice and count >= len(acknowledged)


def two(folder: Path, arguments: argparse.Namespace) -> tuple[str, bool]:
    url = made(folder, 400, 8)
    servers = [Server(url).start(), Server(url).start()]
    labelers = [Labeler(f"labeler{i}", servers[i % 2].port) for i in range(8)]

    def work(labeler: Labeler) -> None:
        labeler.enter()
        while (form := labeler.open()) is not None:
            assert labeler.send(form) == 303

    with at_work(labelers, work):
        pass
    for server in servers:
        server.kill()
    count, lost, twice = kept(url, [key for labeler in labelers for key in labeler.acknowledged])
    return f"two servers, {count} of 400 tasks judged; {lost} lost, {twice} twice", (count, lost, twice) == (400, 0, 0)


def _refused_and_taken(
    url: str, trouble: Callable[[], contextlib.AbstractContextManager[object]], words: str
) -> tuple[str, bool]:
    """Send a form while there is trouble, and again once there is none."""
    server = Server(url, patience=0.5).start()
    labeler = Labeler("labeler0", server.port)
    labeler.enter()
    first, second = labeler.open(), None
    assert first is not None and labeler.send(first) == 303
    second = labeler.open()
    assert second is not None
    with trouble():
        status, page = labeler.request("POST", "/answer", {**second, "answer": "tie", "note": "x" * 2000})
    said = html.unescape((re.findall(r'<p role="alert">(.*?)</p>', page, re.DOTALL) or [page[:200]])[0])
    taken = labeler.send(second)
    server.kill()
    count, lost, twice = kept(url, labeler.acknowledged)
    good = status == 503 and words in said and taken == 303 and (count, lost, twice) == (2, 0, 0)
    return f'"{said}" (HTTP {status}); sent again: HTTP {taken}, {lost} lost, {twice} twice', good


def locked(folder: Path, arguments: argparse.Namespace) -> tuple[str, bool]:
    @contextlib.contextmanager
    def held() -> Iterator[None]:
        with contextlib.closing(sqlite3.connect(folder / "feedback.db", isolation_level=None)) as holder:
            holder.execute("BEGIN IMMEDIATE")
            yield
            holder.execute("ROLLBACK")

    return _refused_and_taken(made(folder, 10, 1), held, "locked by another process")


def full(folder: Path, arguments: argparse.Namespace) -> tuple[str, bool]:
    if os.geteuid() != 0:
        return "left out: it takes root to make a small file system", True
    small = folder / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], check=True)

    @contextlib.contextmanager
    def filled() -> Iterator[None]:
        with contextlib.suppress(OSError), (small / "filler").open("wb", buffering=0) as file:
            while file.write(b"x" * 4096):
                pass
        yield
        (small / "filler").unlink()

    try:
        return _refused_and_taken(made(small, 10, 1), filled, "no space left")
    finally:
        subprocess.run(["umount", str(small)], check=True)


PARTS = {"load": load, "kills": kills, "two": two, "locked": locked, "full": full}


if __name__ == "__main__":
    sys.exit(main())
