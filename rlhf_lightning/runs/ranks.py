"""Which process of a run this is, from the launcher's environment variables, before any heavy import.

Lightning asks the launchers in this order, and so does this module: torchrun (`RANK`), srun (`SLURM_PROCID`), jsrun
(`JSM_NAMESPACE_RANK`), MPI (if mpi4py is installed), and otherwise itself, with `NODE_RANK` from the user and
`LOCAL_RANK` from Lightning's own launcher.
"""

from __future__ import annotations

import importlib.util
import os

_MPI = (("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"), ("PMI_RANK", "PMI_SIZE"))  # Open MPI; MPICH and Intel MPI
_LSF = {"LSB_JOBID", "LSB_DJOB_RANKFILE", "JSM_NAMESPACE_LOCAL_RANK", "JSM_NAMESPACE_SIZE"}


def first_process() -> bool:
    """Return whether this process writes the run's files: global rank 0, whatever started it."""
    rank, _ = _place()
    # Lightning's own launcher may also run inside a task of srun: of its processes only the first is rank 0.
    return rank == 0 and (bool(os.environ.get("RANK")) or _number("LOCAL_RANK") == 0)


def follows_the_first() -> bool:
    """Return whether the first process started this one through Lightning's own launcher, and so also ends it."""
    return _number("LOCAL_RANK") > 0 and not os.environ.get("RANK") and not under_srun()


def started_from_outside() -> bool:
    """Return whether the run has processes that did not start each other, and must be told what to agree on."""
    rank, size = _place()
    says_node = bool(os.environ.get("NODE_RANK")) and not os.environ.get("LOCAL_RANK")  # with both, Lightning may have
    return size > 1 or rank > 0 or _number("LOCAL_RANK") > 0 or says_node


def under_srun() -> bool:
    """Return whether SLURM started this process; in an interactive allocation the variables belong to the shell."""
    return bool(os.environ.get("SLURM_NTASKS")) and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")


def slurm_job() -> str:
    """Return this SLURM job by a name that it keeps when requeued; empty outside of one."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}" if array else os.environ.get("SLURM_JOB_ID", "")


def job() -> str:
    """Return the job of the cluster, or of submitit on this machine, by a name that it keeps when requeued."""
    local = os.environ.get("SUBMITIT_LOCAL_JOB_ID")
    return f"local {local}" if local else slurm_job()


def queued_again() -> bool:
    """Return whether this SLURM job has run before."""
    return bool(slurm_job()) and _number("SLURM_RESTART_COUNT") > 0


def _place() -> tuple[int, int]:
    """Return rank and number of the launcher's processes; with Lightning's own, rank and number of nodes."""
    if os.environ.get("RANK"):
        return _number("RANK"), _number("WORLD_SIZE", 1)
    if under_srun():
        return _number("SLURM_PROCID"), _number("SLURM_NTASKS", 1)
    if os.environ.keys() >= _LSF:
        return _number("JSM_NAMESPACE_RANK"), _number("JSM_NAMESPACE_SIZE", 1)
    for rank, size in _MPI:
        if os.environ.get(rank) and importlib.util.find_spec("mpi4py"):
            return _number(rank), _number(size, 1)
    return _number("NODE_RANK" if os.environ.get("NODE_RANK") else "GROUP_RANK"), _number("WORLD_SIZE", 1)


def _number(name: str, default: int = 0) -> int:
    return int(os.environ.get(name) or default)
