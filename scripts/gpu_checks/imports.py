"""What the machine has, and that every module of the package imports without MLflow."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import torch

from gpu_checks.findings import Finding, holds
from gpu_checks.setting import Setting

PACKAGES = ("torch", "lightning", "transformers", "datasets", "peft", "bitsandbytes", "trl", "mlflow")
OPTIONAL = {
    "matplotlib",
    "vllm",
    "submitit",
    "rich",
}  # what the reports, an engine, SLURM and tables on a terminal need


class NoMLflow:
    """An importer that has never heard of MLflow."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.split(".")[0] == "mlflow":
            raise ModuleNotFoundError("No module named 'mlflow'", name="mlflow")


def check(setting: Setting) -> Iterator[Finding]:
    """Versions, the device, and imports."""
    for package in PACKAGES:
        try:
            yield Finding(f"{package} {version(package)}")
        except PackageNotFoundError:
            yield Finding(f"{package} is not installed")
    if setting.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        name = f"{properties.name}, compute capability {properties.major}.{properties.minor}, CUDA {torch.version.cuda}"
        yield Finding(name, properties.total_memory / 2**30, "GiB")
    sys.meta_path.insert(0, NoMLflow())  # type: ignore[arg-type]
    yield from imported()


def imported() -> Iterator[Finding]:
    """A figure for all modules that import, and one for each that does not."""
    import rlhf_lightning

    count = 0
    for module in pkgutil.walk_packages(rlhf_lightning.__path__, "rlhf_lightning."):
        try:
            importlib.import_module(module.name)
            count += 1
        except ModuleNotFoundError as error:
            missing = (error.name or "").split(".")[0]
            yield holds(f"{module.name} needs {missing}, which is optional", missing in OPTIONAL)
    yield holds("modules that import without mlflow", count > 0, count)
