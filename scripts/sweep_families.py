"""Every family of the installed transformers, tiny and random: right, refused, wrong, or a traceback?

python scripts/sweep_families.py                    # the table; exit code 1 if a family is wrong or ends in a traceback
python scripts/sweep_families.py llama mamba bert   # these alone
python scripts/sweep_families.py --write            # also writes the list of docs/models.md
python scripts/sweep_families.py --classifiers      # the families of sequence classifiers, as reward models

A family is right if log-probabilities (padded and packed rows in training mode with dropout off), their gradients and
sampled log-probabilities are those of plain transformers, each row alone; a classifier, if its scores and their
gradients are, when it scores and when it is trained. Families are judged in a process of their
own, which is started again after one that takes too long.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from families.classifiers import judge_classifier
from families.judge import Verdict, judge
from families.table import documented, replace_list, table
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

DOCS = Path(__file__).parent.parent / "docs" / "models.md"
SECONDS = 120  # of one family, at most


def main() -> None:
    """Judge the families, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", help="model types; none: all")
    parser.add_argument("--classifiers", action="store_true", help="sequence classifiers instead of causal models")
    parser.add_argument("--write", action="store_true", help="write the list of docs/models.md")
    parser.add_argument("--list", action="store_true", help="print that list instead of the table")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    scored = arguments.classifiers
    known = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES if scored else MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    families = arguments.families or list(known)
    if arguments.worker:
        work(families, scored)
        return
    verdicts = list(sweep(families, scored))
    print(documented(verdicts, scored) if arguments.list else table(verdicts))
    if arguments.write:
        DOCS.write_text(replace_list(DOCS.read_text(encoding="utf-8"), verdicts, scored), encoding="utf-8")
    sys.exit(any(verdict.outcome in ("wrong", "traceback") for verdict in verdicts))


def work(families: list[str], classifiers: bool) -> None:
    """In a process of its own: one line of JSON per family."""
    logging.disable(logging.WARNING)
    for family in families:
        print(json.dumps(judge_classifier(family) if classifiers else judge(family)), flush=True)


def sweep(families: list[str], classifiers: bool = False) -> Iterator[Verdict]:
    """The verdicts, in order."""
    while families:
        command = [sys.executable, __file__, "--worker", *families, *(["--classifiers"] if classifiers else [])]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment, bufsize=1
        ) as worker:
            for verdict in _verdicts(worker, families):
                print(f"{verdict.family}: {verdict.outcome} {verdict.reason[:100]}", file=sys.stderr, flush=True)
                families = families[1:]
                yield verdict
            worker.kill()


def _verdicts(worker: subprocess.Popen[str], families: list[str]) -> Iterator[Verdict]:
    """Yield what the worker prints; a family that takes too long, or kills it, ends in a traceback and ends this."""
    assert worker.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(worker.stdout, selectors.EVENT_READ)
        for family in families:
            began = time.monotonic()
            line = worker.stdout.readline() if selector.select(SECONDS) else ""
            if not line:
                seconds = time.monotonic() - began
                yield Verdict(
                    family, "traceback", f"no answer after {seconds:.0f} s" if seconds >= SECONDS else "killed"
                )
                return
            yield Verdict(*json.loads(line))


if __name__ == "__main__":
    main()
