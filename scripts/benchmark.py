"""Compare us with TRL and with transformers' `generate`, alternating in one run; write docs/performance.md.

python scripts/benchmark.py --model SmolLM2-135M --persona persona.jsonl --hh hh.jsonl --selfinstruct selfinstruct.jsonl
python scripts/benchmark.py --only ppo-2x128 ppo-8x512-lora            # random Llamas: needs no files
python scripts/benchmark.py --only ppo-2x128 --profile                 # which operators our time is spent in
python scripts/benchmark.py --list

Each side is a process that stays alive: ours in this environment, the peer in `.venv-trl-<version>`, which is created
if missing (TRL 1.12.0 for PPO, the last version with it; 1.16.0 for the rest). Both do the same repetition in turn,
after one to warm up. Measurements are stored in docs/performance.json, so that `--only` renews some rows of the table
and keeps the others.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from comparison.environments import ROOT
from comparison.inputs import in_our_order, picked_rows, random_llama, random_prompts, reward_model, write
from comparison.job import Job
from comparison.rows import ROWS, Row
from comparison.table import (
    Measured,
    circumstances,
    figures_table,
    profile_table,
    ratio_of_speeds,
)
from comparison.workers import Worker, our_worker, peer_worker

from rlhf_lightning.models import LoRA
from rlhf_lightning.process.quiet import quieten

PAGE, FIGURES = ROOT / "docs" / "performance.md", ROOT / "docs" / "performance.json"
TABLES = "<!-- tables -->"  # before and after the generated part


def jobs(row: Row, given: argparse.Namespace, folder: Path) -> tuple[Job, Job]:
    """Return the repetition, ours and the peer's: they differ in files of equal content, and in our kernels."""
    ours, peer = _jobs(row, given, folder)
    return replace(ours, kernels=given.kernels), peer


def _jobs(row: Row, given: argparse.Namespace, folder: Path) -> tuple[Job, Job]:
    count = given.rows or row.count
    if row.llama is not None:
        model, data = str(random_llama(folder / "model", *row.llama)), str(random_prompts(folder / "prompts.jsonl"))
        whole = reward_model(folder / "reward", model)
        own = reward_model(folder / "adapter", model, LoRA()) if row.lora else whole
        return row.job(model, data, str(own)), row.job(model, data, str(whole))
    picked = picked_rows(getattr(given, row.data), count)
    write(folder / "ours.jsonl", picked)
    write(folder / "peer.jsonl", picked if row.task == "decode" else in_our_order(picked))
    return row.job(given.model, f"{folder}/ours.jsonl"), row.job(given.model, f"{folder}/peer.jsonl")


def compare(row: Row, given: argparse.Namespace) -> Measured:
    """Alternate the two sides, whichever begins."""
    with tempfile.TemporaryDirectory() as name:
        ours_job, peer_job = jobs(row, given, Path(name))
        with (
            our_worker(given.threads) as ours,
            peer_worker(row.trl, given.threads) as peer,
        ):
            sides: list[tuple[Worker, Measured]] = [
                (worker, {**worker.ask("prepare", **asdict(job)), "repeats": []})
                for worker, job in ((ours, ours_job), (peer, peer_job))
            ]
            for worker, _ in sides:
                worker.ask("repeat")
            speeds = []
            for turn in range(given.alternations):
                speeds.append(ours.ask("speeds"))
                for worker, kept in sides if turn % 2 == 0 else reversed(sides):
                    kept["repeats"].append(worker.ask("repeat"))
    (_, kept_ours), (_, kept_peer) = sides
    settings = {"alternations": given.alternations, "threads": given.threads}
    return {**settings, "ours": kept_ours, "peer": kept_peer, "speeds": speeds}


def profile(row: Row, given: argparse.Namespace) -> str:
    """Return where the time of one repetition goes on our side."""
    with tempfile.TemporaryDirectory() as name:
        job, _ = jobs(row, given, Path(name))
        with our_worker(given.threads) as ours:
            ours.ask("prepare", **asdict(job))
            ours.ask("repeat")
            return f"{row.what}\n\n{profile_table(ours.ask('profile')['operators'])}\n"


def tables(results: dict[str, Measured]) -> str:
    """Return all measurements, as Markdown."""
    return f"{figures_table(results)}\n\n{circumstances(results)}"


def keep(results: dict[str, Measured]) -> None:
    """Write the measurements, and the table into the page."""
    FIGURES.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    before, _, after = PAGE.read_text(encoding="utf-8").split(TABLES)
    PAGE.write_text(f"{before}{TABLES}\n\n{tables(results)}\n\n{TABLES}{after}", encoding="utf-8")


def parse() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a Hugging Face folder: SmolLM2-135M")
    parser.add_argument("--persona", metavar="JSONL", help="preferences with short answers")
    parser.add_argument("--hh", metavar="JSONL", help="preferences with long prompts")
    parser.add_argument("--selfinstruct", metavar="JSONL", help="prompt and completion, of mixed lengths")
    parser.add_argument("--only", nargs="+", metavar="ROW", choices=[row.key for row in ROWS], help="these rows")
    parser.add_argument("--alternations", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each side's products")
    parser.add_argument("--rows", type=int, help="rows of a repetition, for a quick look at a row that reads a file")
    parser.add_argument(
        "--kernels", nargs="+", default=["auto"], help="our kernels: auto, none, or names; only auto's figures are kept"
    )
    parser.add_argument(
        "--profile", action="store_true", help="print which operators ours spends its time in, and stop"
    )
    parser.add_argument("--dry", action="store_true", help="print, and write nothing")
    parser.add_argument("--list", action="store_true", help="print the rows' names and stop")
    given = parser.parse_args()
    given.kernels = given.kernels[0] if given.kernels[0] in ("auto", "none") else given.kernels
    given.chosen = [row for row in ROWS if given.only is None or row.key in given.only]
    needed = {name for row in given.chosen if row.data for name in ("model", row.data)}
    missing = sorted(f"--{name}" for name in needed if getattr(given, name) is None)
    if missing and not given.list:
        parser.error(f"the chosen rows need {', '.join(missing)}; or choose others with --only")
    return given


def main() -> None:
    """Measure the chosen rows one by one."""
    given = parse()
    if given.list:
        print("\n".join(f"{row.key:20} {row.what}" for row in ROWS))
        return
    quieten()
    if given.profile:
        print("\n".join(profile(row, given) for row in given.chosen))
        return
    stored: dict[str, Any] = json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.is_file() else {}
    measured: dict[str, Measured] = {}
    for row in given.chosen:
        measured[row.key] = compare(row, given)
        print(f"{row.key}: {ratio_of_speeds(measured[row.key]):.2f}", file=sys.stderr, flush=True)
        if not given.dry and given.kernels == "auto":
            keep(stored | measured)
    print(tables(measured))


if __name__ == "__main__":
    main()
