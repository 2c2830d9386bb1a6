"""Measure what only a GPU can answer, in one command of at most eight minutes; write a JSON file and print a table.

python scripts/check_gpu.py                          # on a machine with one GPU
python scripts/check_gpu.py --only agreement nf4     # some sections; --list names them
python scripts/check_gpu.py --cpu                    # a rehearsal: the same code, small sizes

Models and rows are made here; nothing is downloaded. Every section is a separate process: one that breaks, or takes
longer than its time plus what earlier ones have left over, loses none of the others' results. The command exits with 1
if a section broke or a result is outside its bound. MLflow is not needed; bitsandbytes and TRL are used if they are
installed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT)]

from comparison.memory import ALLOCATOR  # noqa: E402
from gpu_checks.findings import Finding, NotMeasuredError, Section, as_json, table  # noqa: E402

# Section -> the seconds that it may take. Together they are the eight minutes, minus the start of this process.
SECONDS = {
    "imports": 25,
    "agreement": 75,
    "nf4": 35,
    "kernels": 45,
    "decoding": 50,
    "memory-sft": 40,
    "memory-dpo": 40,
    "memory-ppo": 45,
    "resume": 45,
    "switches": 35,
    "trl": 40,
}
MODULES = {"trl": "beside_trl"}  # where it differs from the section's name


def check_of(section: str) -> Callable[[Any], Iterator[Finding]]:
    """Return the section's generator of results."""
    name, _, task = section.partition("-")
    module = importlib.import_module(f"gpu_checks.{MODULES.get(name, name)}")
    check: Callable[[Any], Iterator[Finding]] = partial(module.check_task, task=task) if task else module.check
    return check


def measure(section: str, cpu: bool, folder: Path, send: Callable[[dict[str, Any]], None]) -> None:
    """Run a section in this process; every result is sent as soon as it is available."""
    from rlhf_lightning.process.quiet import quieten

    quieten()
    from gpu_checks.setting import ON_A_GPU, REHEARSAL, Setting

    own = folder / section
    own.mkdir()
    setting = Setting("cpu", REHEARSAL, own) if cpu else Setting("cuda", ON_A_GPU, own)
    try:
        for finding in check_of(section)(setting):
            send({"finding": vars(finding)})
        send({"status": "ok"})
    except NotMeasuredError as missing:
        send({"status": "not measured", "note": str(missing)})


def in_own_process(section: str, command: list[str], seconds: float) -> Section:
    """Yield what a section's process reports until it ends, or its time is over."""
    started = time.monotonic()
    variables = {**os.environ, **(ALLOCATOR if section.startswith("memory") else {}), "HF_HUB_OFFLINE": "1"}
    variables.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic products
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=variables)
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        assert process.stdout is not None
        findings, status, note = [], "failed", ""
        for line in process.stdout:
            said = json.loads(line)
            if "finding" in said:
                findings.append(Finding(**said["finding"]))
            else:
                status, note = said["status"], said.get("note", "")
        process.wait()
        timed_out = not timer.is_alive()
        timer.cancel()
        took = time.monotonic() - started
        if status == "failed":
            errors.seek(0)
            note = f"out of time after {took:.0f} s" if timed_out else last_line(errors.read(), process.returncode)
    return Section(section, status, took, findings, note)  # type: ignore[arg-type]


def last_line(errors: str, code: int) -> str:
    """Return the line that says what went wrong: a traceback's last one."""
    lines = [line for line in errors.splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else f"ended with code {code}"


def run(sections: Iterable[str], command: Callable[[str], list[str]], budgets: dict[str, float]) -> Iterator[Section]:
    """Run one section after the other; a section may use the time that earlier ones left over."""
    began, allowed = time.monotonic(), 0.0
    for section in sections:
        allowed += budgets[section]
        done = in_own_process(section, command(section), allowed - (time.monotonic() - began))
        print(
            f"{section}: {'failed' if done.failed else done.status}, {done.seconds:.0f} s", file=sys.stderr, flush=True
        )
        yield done


def has_gpu() -> bool:
    """Return whether torch finds one."""
    import torch

    return torch.cuda.is_available()


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", action="store_true", help="rehearse on a CPU with small sizes")
    parser.add_argument("--only", nargs="+", choices=SECONDS, default=[*SECONDS], metavar="SECTION")
    parser.add_argument("--list", action="store_true", help="print the names of the sections and their seconds")
    parser.add_argument("--minutes", type=float, default=8, help="for everything; default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("check_gpu.json"), help="default: %(default)s")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.list:
        print("\n".join(f"{name}  {seconds}" for name, seconds in SECONDS.items()))
        return
    if given.measure:
        answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what libraries print is not a result
        measure(given.measure, given.cpu, given.folder, lambda said: print(json.dumps(said), file=answers, flush=True))
        return
    if not given.cpu and not has_gpu():
        sys.exit("torch finds no GPU on this machine; `--cpu` rehearses the checks without one")
    with tempfile.TemporaryDirectory() as folder:
        mode = ["--cpu"] if given.cpu else []
        command = [sys.executable, __file__, *mode, "--folder", folder, "--measure"]
        budgets = {name: seconds * given.minutes / 8 for name, seconds in SECONDS.items()}
        sections = list(run(given.only, lambda section: [*command, section], budgets))
    found = {"device": "cpu" if given.cpu else "cuda", "sections": [as_json(section) for section in sections]}
    given.out.write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(table(sections))
    print(f"written: {given.out}")
    sys.exit(any(section.failed for section in sections))


if __name__ == "__main__":
    main()
