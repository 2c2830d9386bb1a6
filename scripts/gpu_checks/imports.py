"""Check what the machine has, and that every module of the package imports without MLflow."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from gpu_checks.findings import Finding, holds
from gpu_checks.setting import Setting

PACKAGES = ("torch", "lightning", "transformers", "datasets", "peft", "bitsandbytes", "trl", "mlflow")


class Without:
    """A module finder that does not find one package."""

    def __init__(self, finder: Any, package: str) -> None:
        self.finder, self.package = finder, package

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Return None for the package and its modules."""
        return None if name.split(".")[0] == self.package else self.finder.find_spec(name, path, target)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)


def check(setting: Setting) -> Iterator[Finding]:
    """Check versions, the device, and imports."""
    for package in PACKAGES:
        try:
            yield Finding(f"{package} {version(package)}")
        except PackageNotFoundError:
            yield Finding(f"{package} is not installed")
    if setting.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        name = f"{properties.name}, compute capability {properties.major}.{properties.minor}, CUDA {torch.version.cuda}"
        yield Finding(name, properties.total_memory / 2**30, "GiB")
    sys.meta_path[:] = [Without(finder, "mlflow") for finder in sys.meta_path]  # type: ignore[misc]
    yield from imported()


def imported() -> Iterator[Finding]:
    """Yield one result for all modules that import, and one for each that does not."""
    import rlhf_lightning

    count = 0
    for module in pkgutil.walk_packages(rlhf_lightning.__path__, "rlhf_lightning."):
        try:
            importlib.import_module(module.name)
            count += 1
        except ModuleNotFoundError as error:
            yield holds(f"{module.name} imports without {error.name}", False)
    yield holds("modules that import without mlflow", count > 0, count)
