"""SLURM on one machine, as far as submitit and Lightning use it: each "node" is a process of this machine.

`install` writes the commands sbatch, srun, sacct and scontrol, which run this file. Jobs are queued in $FAKE_SLURM.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

COMMANDS = ("sbatch", "srun", "sacct", "scontrol")


def install(folder: Path) -> dict[str, str]:
    """Write the commands into a folder; return the environment in which they are found."""
    folder.mkdir()
    for command in COMMANDS:
        (folder / command).write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {command} "$@"\n')
        (folder / command).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}", "FAKE_SLURM": str(folder)}


def state_file(job: str, kind: str) -> Path:
    return Path(os.environ["FAKE_SLURM"]) / f"{job}.{kind}"


def options(script: str) -> dict[str, str]:
    """Return the lines #SBATCH --name=value of a batch script."""
    found = re.findall(r"^#SBATCH --([\w-]+)=(.*)$", script, flags=re.MULTILINE)
    return {name: value.strip("'") for name, value in found}


def sbatch(script: str) -> None:
    """Start the job, or every job of an array, in the background."""
    number = os.getpid()
    asked = options(Path(script).read_text())
    last = re.match(r"0-(\d+)", asked.get("array", ""))
    indices = [""] if last is None else [str(i) for i in range(int(last[1]) + 1)]
    for index in indices:
        job = f"{number}_{index}" if index else str(number)
        state_file(job, "state").write_text("RUNNING")
        command = [sys.executable, __file__, "batch", script, job]
        with state_file(job, "log").open("w") as log:
            subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
    print(f"Submitted batch job {number}")


def batch(script: str, job: str) -> None:
    """Run a batch script, again whenever it has asked to be requeued."""
    asked, (number, _, index) = options(Path(script).read_text()), job.partition("_")
    nodes, tasks = asked["nodes"], asked["ntasks-per-node"]
    environment = {
        "SLURM_JOB_ID": str(int(number) + int(index or 0)),
        "SLURM_JOB_NAME": asked["job-name"],
        "SLURM_NNODES": nodes,
        "SLURM_JOB_NUM_NODES": nodes,
        "SLURM_NTASKS_PER_NODE": tasks,
        "SLURM_NTASKS": str(int(nodes) * int(tasks)),
        "SLURM_NODELIST": "localhost",
        "SLURM_JOB_NODELIST": "localhost",
        "FAKE_SLURM_JOB": job,
    }
    if index:
        environment |= {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": index}
    for restart in range(5):
        environment["SLURM_RESTART_COUNT"] = str(restart)
        code = subprocess.run(["bash", script], env={**os.environ, **environment}, check=False).returncode
        if not state_file(job, "requeue").exists():
            break
        state_file(job, "requeue").rename(state_file(job, f"requeued{restart}"))
    state_file(job, "code").write_text(str(code))
    state_file(job, "state").write_text("FAILED" if code else "COMPLETED")


def srun(*arguments: str) -> None:
    """Start one process per task; with --kill-on-bad-exit a failing one ends the others."""
    given, files, kill = list(arguments), {}, False
    while given[0].startswith("--"):
        option = given.pop(0)
        kill = kill or option == "--kill-on-bad-exit=1"
        if option in ("--output", "--error"):
            files[option] = given.pop(0)
    job, per_node = os.environ["FAKE_SLURM_JOB"], int(os.environ["SLURM_NTASKS_PER_NODE"])
    processes = []
    for rank in range(int(os.environ["SLURM_NTASKS"])):
        ranks = {"PROCID": rank, "LOCALID": rank % per_node, "NODEID": rank // per_node}
        environment = {**os.environ, **{f"SLURM_{name}": str(value) for name, value in ranks.items()}}
        out, error = (open(_filled(files[name], job, rank), "a") for name in ("--output", "--error"))  # noqa: SIM115
        processes.append(subprocess.Popen(given, env=environment, stdout=out, stderr=error))
    state_file(job, "pids").write_text(" ".join(str(process.pid) for process in processes))
    while None in (codes := [process.poll() for process in processes]):  # of all: the failing one may be the last
        if kill and any(codes):
            for process in processes:
                process.send_signal(signal.SIGKILL)
        time.sleep(0.05)
    sys.exit(max(process.returncode % 256 for process in processes))


def _filled(pattern: str, job: str, rank: int) -> str:
    number, _, index = job.partition("_")
    for mark, value in {"%j": job, "%A": number, "%a": index, "%t": str(rank)}.items():
        pattern = pattern.replace(mark, value)
    return pattern


def sacct(*arguments: str) -> None:
    """Print the state of every job ever started, from which the caller picks its own."""
    print("JobID|State|NodeList")
    for file in sorted(Path(os.environ["FAKE_SLURM"]).glob("*.state")):
        print(f"{file.stem}|{file.read_text()}|localhost")


def scontrol(requeue: str, job: str) -> None:
    """Requeue a job: SLURM would also end it, but here it must end itself."""
    state_file(job, requeue).touch()


if __name__ == "__main__":
    {"sbatch": sbatch, "batch": batch, "srun": srun, "sacct": sacct, "scontrol": scontrol}[sys.argv[1]](*sys.argv[2:])
