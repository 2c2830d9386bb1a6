"""Inflict faults on runs, and check that nothing is lost: prints a table of what each cost.

    python scripts/faults.py                   all of them; exit 1 if one is not handled well
    python scripts/faults.py --only tracking   those whose name contains the text
    python scripts/faults.py --quick           those that the default tests run
    python scripts/faults.py --list            names, without running

Columns: finished steps, checkpoints or points that are gone; whether the end is bitwise that of an undisturbed run; how
many seconds longer it took; lines on standard error beyond those of the undisturbed run. Every fault gets its own
folder; its runs are forks of this process, which has imported the heavy libraries once.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
import traceback
from pathlib import Path

from fault_catalogue import Fault, Outcome, all_faults
from forked_command import preload

HEADER = "| fault | lost | equal | seconds | lines | note |\n|---|---|---|---|---|---|"
EQUAL = {True: "yes", False: "NO", None: "-"}


def row(fault: Fault, outcome: Outcome) -> str:
    """Return a line of the table."""
    name = fault.name if outcome.good else f"**BAD** {fault.name}"
    figures = (str(outcome.lost), EQUAL[outcome.equal], f"{outcome.seconds:.1f}", str(outcome.lines))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in (name, *figures, outcome.note)) + " |"


def tried(fault: Fault, folder: Path) -> Outcome:
    """Return the outcome of a fault; one that cannot even be tried is not good."""
    began = time.monotonic()
    try:
        folder.mkdir()
        return fault.run(folder)
    except Exception as error:
        traceback.print_exc()
        return Outcome(0, None, time.monotonic() - began, 0, False, f"{type(error).__name__}: {error}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="run the faults whose name contains this")
    parser.add_argument("--quick", action="store_true", help="run those of the default tests alone")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    arguments = parser.parse_args()
    faults = [each for each in all_faults() if arguments.only in each.name and not (arguments.quick and each.slow)]
    if arguments.list:
        print("\n".join(fault.name for fault in faults))
        return 0
    preload()
    print(
        f"{platform.machine()}, {os.cpu_count()} CPU cores, Python {platform.python_version()}\n\n{HEADER}", flush=True
    )
    bad = 0
    with tempfile.TemporaryDirectory(prefix="faults-", ignore_cleanup_errors=True) as scratch:
        for number, fault in enumerate(faults):
            outcome = tried(fault, Path(scratch) / str(number))
            bad += not outcome.good
            print(row(fault, outcome), flush=True)
    print(f"\n{len(faults) - bad} of {len(faults)} faults taken well")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
