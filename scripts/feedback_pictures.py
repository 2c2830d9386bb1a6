"""Draw the pictures of docs/feedback.md: the labelling page and the owner's page, light and dark, in Chromium.

python scripts/feedback_pictures.py              into docs/pictures (make test-browser installs what it needs)
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvicorn
from PIL import Image
from playwright.sync_api import sync_playwright

from rlhf_lightning.feedback import (
    Answer,
    Asking,
    FeedbackStore,
    Response,
    Sample,
    Task,
    check_task,
    make_tasks,
    spread,
    task_id,
)
from rlhf_lightning.feedback.pages import make_app

PROMPT = [{"role": "user", "content": "How do I find which process is using port 8000 on Linux, and stop it?"}]
GOOD = """Ask `ss` for the process that listens there, then end it politely:

```bash
ss -ltnp 'sport = :8000'
kill 4211
```

Replace `4211` by the number after `pid=`. Use `kill -9` only if it is still there after a few seconds."""
WORDY = """Great question! There are **many ways** to do this, and it really depends on what you would like to do.

1. You could restart the computer, which stops everything.
2. You could look for it in a list of all processes: `ps aux`
3. You could try `killall`, but be careful!

I hope this helps you. Let me know if you have further questions!"""
RANKED = (
    "Rain, and a mild wind from the west.",
    "It will be nice!",
    "I cannot know tomorrow's weather from here.",
    "No.",
)
SKILLS = {"ana": 0.94, "bo": 0.9, "eve": 0.35}  # how often each takes the short answer, or the right one


def fill(store: FeedbackStore) -> None:
    """Add some answers of three labelers, so that there is something to see."""
    numbers = random.Random(1)
    samples = [
        Sample(
            f"Question {i}",
            (Response(f"A short answer to question {i}."), Response(f"An answer to {i} that goes on and on and on.")),
        )
        for i in range(150)
    ]
    checks = [check_task(f"Check {i}", f"This is right, {i}.", f"This is wrong, {i}.") for i in range(12)]
    store.add_tasks(spread(list(make_tasks(samples, Asking(overlap=2, overlap_share=0.6))), checks))
    for name in SKILLS:
        store.add_labeler(name)
    known = {task.id: task for task in store.tasks()}
    for turn in range(210):
        name = list(SKILLS)[turn % 3]
        task = store.next_task(name)
        if task is None:
            break
        check = known[task.id].check
        shorter = min((0, 1), key=lambda i: len(task.texts[i]))
        best = shorter if check is None else check
        choice = best if numbers.random() < SKILLS[name] else 1 - best
        store.record(name, task.id, Answer("choice", choice, numbers.choice([1, 2, 3])))


def draw(browser: Any, address: str, link: str, name: str, folder: Path, width: int, height: int) -> None:
    """Draw one page, light and dark."""
    for scheme in ("light", "dark"):
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        page = context.new_page()
        page.goto(f"{address}{link}")
        if page.locator("text=Start labelling").count():
            page.click("text=Start labelling")
        file = folder / f"{name}_{scheme}.png"
        page.screenshot(path=file, full_page=name == "owner")
        Image.open(file).convert("RGB").quantize(48).save(file, optimize=True)
        context.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--to", type=Path, default=Path(__file__).parents[1] / "docs" / "pictures")
    arguments = parser.parse_args()
    arguments.to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        clock = iter(range(10**9, 2 * 10**9, 7))
        label = FeedbackStore(f"sqlite:///{scratch}/label.db", clock=lambda: float(next(clock)))
        asked = Task(task_id("pair", PROMPT, (GOOD, WORDY)), "pair", PROMPT, (Response(GOOD), Response(WORDY)))
        others = [check_task(f"Question {i}", f"Yes, {i}.", f"No, {i}.") for i in range(40)]
        label.add_tasks([*(replace(task, overlap=1) for task in others[:12]), asked])
        label.add_tasks(replace(task, overlap=1) for task in others[12:])
        label.add_labeler("ana")
        for task in others[:12]:
            label.next_task("ana")
            label.record("ana", task.id, Answer("tie"))
        rank = FeedbackStore(f"sqlite:///{scratch}/rank.db")
        question = "What will the weather be like tomorrow?"
        rank.add_tasks([Task(task_id("ranking", question, RANKED), "ranking", question, tuple(map(Response, RANKED)))])
        rank.add_labeler("ana")
        owner = FeedbackStore(f"sqlite:///{scratch}/owner.db", clock=lambda: float(next(clock)))
        fill(owner)
        for store, link, name, width, height in (
            (label, "/enter/ana", "label", 1000, 760),
            (rank, "/enter/ana", "rank", 400, 760),
            (owner, "/owner", "owner", 1000, 620),
        ):
            server = uvicorn.Server(uvicorn.Config(make_app(store), port=0, log_level="warning"))
            thread = threading.Thread(target=server.run)
            thread.start()
            while not server.started:
                assert thread.is_alive()
            address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
            draw(browser, address, link, name, arguments.to, width, height)
            server.should_exit = True
            thread.join()
            store.close()
        browser.close()


if __name__ == "__main__":
    main()
