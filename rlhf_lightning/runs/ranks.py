"""Which process of a run this is, as the launcher's environment variables say before anything heavy is imported.

Lightning asks the launchers in this order, and so does this: torchrun (`RANK`), srun (`SLURM_PROCID`), jsrun
(`JSM_NAMESPACE_RANK`), MPI (if mpi4py is installed), and else itself, with `NODE_RANK` from the user and `LOCAL_RANK`
from Lightning's own launcher.
"""

from __future__ import annotations

import importlib.util
import os

_MPI = (("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"), ("PMI_RANK", "PMI_SIZE"))  # Open MPI; MPICH and Intel MPI
_LSF = {"LSB_JOBID", "LSB_DJOB_RANKFILE", "JSM_NAMESPACE_LOCAL_RANK", "JSM_NAMESPACE_SIZE"}


def first_process() -> bool:
    """Whether this process writes the run's files: global rank 0, whatever started it."""
    rank, _ = _place()
    # Lightning's own launcher may also run inside a task of srun: of its processes only the first is rank 0.
    return rank == 0 and (bool(os.environ.get("RANK")) or _number("LOCAL_RANK") == 0)


def follows_the_first() -> bool:
    """Whether the first process has started this one, by Lightning's own launcher, and ends it, too."""
    return _number("LOCAL_RANK") > 0 and not os.environ.get("RANK") and not under_srun()


def started_from_outside() -> bool:
    """Whether the run has processes that did not start each other, which have to be told what they must agree on."""
    rank, size = _place()
    says_node = bool(os.environ.get("NODE_RANK")) and not os.environ.get("LOCAL_RANK")  # with both, Lightning may have
    return size > 1 or rank > 0 or _number("LOCAL_RANK") > 0 or says_node


def under_srun() -> bool:
    """Whether SLURM has started this process; in an interactive allocation the variables are of the shell."""
    return bool(os.environ.get("SLURM_NTASKS")) and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")


def slurm_job() -> str:
    """The SLURM job that this is, by a name that it keeps when it is queued again; empty outside of one."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}" if array else os.environ.get("SLURM_JOB_ID", "")


def job() -> str:
    """The job of the cluster, or of submitit on this machine, by a name that it keeps when it is queued again."""
    local = os.environ.get("SUBMITIT_LOCAL_JOB_ID")
    return f"local {local}" if local else slurm_job()


def queued_again() -> bool:
    """Whether this SLURM job has run before."""
    return bool(slurm_job()) and _number("SLURM_RESTART_COUNT") > 0


def _place() -> tuple[int, int]:
    """Rank and number of the processes that the launcher has started; of Lightning's own, rank and number of nodes."""
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
