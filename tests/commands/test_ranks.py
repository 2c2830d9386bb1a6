"""One process writes the run's files, whichever launcher started it."""

from __future__ import annotations

import importlib.util

import pytest
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment

from rlhf_lightning.runs.ranks import first_process, started_from_outside

LAUNCHERS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID")
SLURM = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_JOB_NAME")
TORCHRUN = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}
SRUN = {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NAME": "train"}
LSF = {"LSB_JOBID": "1", "LSB_DJOB_RANKFILE": "x", "JSM_NAMESPACE_SIZE": "2", "JSM_NAMESPACE_LOCAL_RANK": "0"}


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch):
    """Set one process's variables, and no others."""

    def start(variables: dict[str, str]) -> None:
        for name in (*LAUNCHERS, *SLURM):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return start


@pytest.mark.parametrize(
    ("variables", "first"),
    [
        ({}, True),
        # Lightning's own launcher; with several nodes the user says which one this is
        ({"LOCAL_RANK": "1"}, False),
        ({"NODE_RANK": "0"}, True),
        ({"NODE_RANK": "1"}, False),
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False),
        ({"NODE_RANK": "0", "LOCAL_RANK": "1"}, False),
        ({"GROUP_RANK": "1"}, False),
        ({"NODE_RANK": "0", "GROUP_RANK": "1"}, True),
        # torchrun, whose ranks need not follow SLURM's
        ({"RANK": "0"}, True),
        ({**TORCHRUN, "RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0", "SLURM_PROCID": "1"}, True),
        ({**TORCHRUN, "RANK": "2", "LOCAL_RANK": "0", "GROUP_RANK": "1", "SLURM_PROCID": "0"}, False),
        # srun, also with the LOCAL_RANK that many batch scripts set, and with Lightning's launcher in each task
        ({**SRUN, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, True),
        ({**SRUN, "SLURM_PROCID": "2", "SLURM_LOCALID": "0", "LOCAL_RANK": "0"}, False),
        ({**SRUN, "SLURM_PROCID": "0", "LOCAL_RANK": "1"}, False),
        # an interactive allocation is not srun: the variables belong to the shell
        ({**SRUN, "SLURM_JOB_NAME": "bash", "SLURM_PROCID": "1"}, True),
        ({**LSF, "JSM_NAMESPACE_RANK": "0"}, True),
        ({**LSF, "JSM_NAMESPACE_RANK": "1"}, False),
    ],
)
def test_only_global_rank_0_writes(variables, first, start):
    start(variables)
    assert first_process() is first


@pytest.mark.parametrize(("rank", "first"), [("0", True), ("1", False)])
def test_mpi_counts_where_lightning_asks_it(rank, first, start, monkeypatch):
    start({"OMPI_COMM_WORLD_RANK": rank, "OMPI_COMM_WORLD_SIZE": "2"})
    assert first_process()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert first_process() is first
    assert started_from_outside()


@pytest.mark.parametrize("node", range(2))
@pytest.mark.parametrize("local", range(2))
def test_it_is_the_rank_of_lightnings_environments(node, local, start):
    """Two nodes with two processes each."""
    rank = 2 * node + local
    start({**TORCHRUN, "RANK": str(rank), "LOCAL_RANK": str(local), "GROUP_RANK": str(node)})
    assert first_process() is (TorchElasticEnvironment().global_rank() == 0)
    start({**SRUN, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(local), "SLURM_NODEID": str(node)})
    assert first_process() is (SLURMEnvironment().global_rank() == 0)
    start({"NODE_RANK": str(node), "LOCAL_RANK": str(local)})
    environment = LightningEnvironment()
    assert first_process() is (2 * environment.node_rank() + environment.local_rank() == 0)


@pytest.mark.parametrize(
    ("variables", "outside"),
    [
        ({}, False),
        ({"NODE_RANK": "0", "LOCAL_RANK": "0"}, False),  # what Lightning's launcher leaves in the first process
        ({"NODE_RANK": "0"}, True),
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, True),
        ({"LOCAL_RANK": "1"}, True),
        ({"RANK": "0", "WORLD_SIZE": "2"}, True),
        ({**SRUN, "SLURM_PROCID": "0"}, True),
        ({**SRUN, "SLURM_JOB_NAME": "interactive"}, False),
    ],
)
def test_processes_that_did_not_start_each_other_are_known(variables, outside, start):
    start(variables)
    assert started_from_outside() is outside
