"""Modules in the working folder: found when a config names them, but never by a library that looks for a package.

Libraries import packages that may or may not be installed (transformers looks for `sentencepiece`, mlflow for `git`).
With the working folder on `sys.path`, a file of that name, in a folder that somebody else has filled, would be run.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType, ModuleType

_PACKAGE = Path(__file__).resolve().parent
_HYDRA = f"{os.sep}site-packages{os.sep}hydra{os.sep}"
_IMPORT_SYSTEM = str(Path(importlib.__file__).parent)  # the import statement's own frames are frozen


class WorkingFolderFinder:
    """Finds top-level modules in a folder for this package, for Hydra's `_target_`, and for modules of that folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._may_import = (f"{_PACKAGE}{os.sep}", f"{folder}{os.sep}")

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Find a module, after every other finder, so that nothing in the folder shadows an installed package."""
        if path is not None or not self._is_asked_by_config(sys._getframe(1)):
            return None
        return importlib.machinery.PathFinder.find_spec(name, [str(self.folder)])

    def _is_asked_by_config(self, frame: FrameType | None) -> bool:
        while frame is not None:
            file = frame.f_code.co_filename
            if not file.startswith(("<frozen", _IMPORT_SYSTEM)):
                if "site-packages" in file and not file.startswith(self._may_import[0]):  # an environment may lie in it
                    # Hydra looks up the class of a `_target_` there, and also plugins and optional packages.
                    return _HYDRA in file and frame.f_code.co_name == "_locate"
                return file.startswith(self._may_import)
            frame = frame.f_back
        return False


def import_from_working_folder() -> None:
    """Let configs name modules in the working folder."""
    folder = Path.cwd()
    if not any(isinstance(finder, WorkingFolderFinder) and finder.folder == folder for finder in sys.meta_path):
        sys.meta_path.append(WorkingFolderFinder(folder))


def take_working_folder_off_path() -> None:
    """Remove the working folder from `sys.path`, where `python -m` or an empty entry of `PYTHONPATH` has put it."""
    folder = Path.cwd()
    if not (folder / _PACKAGE.name).is_dir():
        sys.path[:] = [entry for entry in sys.path if entry not in ("", ".") and Path(entry) != folder]
