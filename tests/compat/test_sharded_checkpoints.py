"""Sharded checkpoints are read without running their pickles."""

from __future__ import annotations

import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
import torch.distributed.checkpoint.default_planner as planner
import torch.distributed.checkpoint.filesystem as filesystem

from rlhf_lightning.compat.torch_names import read_sharded_checkpoints_without_pickles

pytestmark = pytest.mark.filterwarnings("ignore")


class Bomb:
    def __reduce__(self) -> Any:
        return pytest.fail, ("it ran",)


@pytest.fixture(autouse=True)
def without_pickles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "pickle", pickle)
    monkeypatch.setattr(planner, "torch", torch)
    read_sharded_checkpoints_without_pickles()


def states() -> dict[str, Any]:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2).to(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.125)
    model(torch.ones(1, 3, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    return {"state_dict": model.state_dict(), "optimizer_0": optimizer.state_dict(), "more": {"a": 1.5, "b": None}}


def save(folder: Path, state: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, checkpoint_id=folder)


def test_a_checkpoint_is_read_as_it_was_saved(tmp_path):
    save(tmp_path, states())
    read = states()
    read["state_dict"]["weight"].zero_()
    read["optimizer_0"]["param_groups"][0]["lr"] = read["more"]["a"] = 9.0
    dcp.load(read, checkpoint_id=tmp_path)
    assert torch.equal(read["state_dict"]["weight"], states()["state_dict"]["weight"])
    assert read["optimizer_0"]["param_groups"] == states()["optimizer_0"]["param_groups"]
    assert read["more"] == {"a": 1.5, "b": None}


def test_an_index_that_is_a_program_is_refused(tmp_path):
    save(tmp_path, states())
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(dcp.api.CheckpointException, match=r"no checkpoint of torch's does"):
        dcp.load(states(), checkpoint_id=tmp_path)


@pytest.mark.parametrize("name", [b"os", b"os.system", b"system"])
def test_no_function_is_reached_through_a_module_of_the_index(name):
    program = b"ctorch.distributed.checkpoint.metadata\n" + name + b"\n."
    with pytest.raises(pickle.UnpicklingError):
        filesystem.pickle.load(io.BytesIO(program))


def test_a_value_that_is_a_program_is_refused(tmp_path):
    state = states()
    state["more"]["a"] = Bomb()
    save(tmp_path, state)
    with pytest.raises(dcp.api.CheckpointException, match="Weights only load failed"):
        dcp.load(states(), checkpoint_id=tmp_path)
