"""A missing package, or an environment that is not active, is named with the next step."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_lightning.config import devices
from rlhf_lightning.environment import explain_missing, how_to_get, missing_package
from rlhf_lightning.errors import reason

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("error", "package", "step"),
    [
        (ModuleNotFoundError("No module named 'vllm'", name="vllm"), "vllm", "[vllm]"),
        (ModuleNotFoundError("No module named 'hydra_plugins.x'", name="hydra_plugins.x"), "hydra_plugins", "[slurm]"),
        (
            ImportError("the package flash_attn seems to be not installed."),
            "flash_attn",
            "attn_implementation=",
        ),
        (
            ImportError("LlamaTokenizer requires the SentencePiece library but"),
            "SentencePiece",
            "SentencePiece",
        ),
        (ModuleNotFoundError("No module named 'psycopg'", name="psycopg"), "psycopg", "rlhf-lightning[postgres]"),
    ],
)
def test_a_missing_package_comes_with_the_command_that_installs_it(error, package, step):
    assert missing_package(error) == package
    assert step in how_to_get(package)
    assert step in reason(error)


def test_a_reason_that_names_the_command_itself_is_left_alone():
    assert reason(ImportError("no x here; pip install x")) == "no x here; pip install x"


def test_an_import_that_fails_otherwise_is_not_explained():
    assert explain_missing(ImportError("cannot import name 'f' from 'torch'")) is None
    assert explain_missing(ModuleNotFoundError("No module named 'my_package'", name="my_package")) is None
    assert explain_missing(ValueError("No module named 'torch'")) is None


def test_a_python_without_the_packages_is_told_to_activate_the_environment(tmp_path):
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").touch()
    done = subprocess.run(
        [sys.executable, "-S", "-m", "rlhf_lightning", "train"],  # -S: without the installed packages
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: the package ")
    assert done.stderr.endswith("activate the environment of rlhf-lightning: source .venv/bin/activate\n")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("has_gpu", "cuda", "said"),
    [
        (False, None, "^$"),
        (True, None, r"torch 2\.10 is a build for CPUs.*pytorch\.org"),
        (True, "12.8", r"driver may be older.*nvidia-smi"),
    ],
)
def test_a_gpu_that_torch_does_not_see_says_why(has_gpu, cuda, said, monkeypatch):
    monkeypatch.setattr(devices, "_has_gpu", lambda: has_gpu)
    assert re.search(said, devices.why_torch_sees_none("2.10", cuda))
