"""What can be known to be wrong with the configs of the feedback commands before a store is opened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_lightning.config.config_files import shipped
from rlhf_lightning.config.schema import Agreement
from rlhf_lightning.config.validation import validate
from rlhf_lightning.errors import UserError

SQLITE = "sqlite:///"
_OF_ROWS = ("kind", "method", "held_out")


def check_agreement(config: Mapping[str, Any]) -> None:
    """Raise UserError for the first thing that is wrong with a config of rlhf-agreement."""
    validate(config, Agreement)
    imports, exports = config["import"], config["export"]
    if imports and not Path(imports).exists():
        raise UserError(f"import: {imports} does not exist; give the file that Argilla or Label Studio has exported")
    if imports and config["format"] == "rows":
        raise UserError("format: found rows, which are not imported; choose format=argilla or format=label_studio")
    _without_effect(config, ("names",), "give import=<file>, or leave it out", unless=imports)
    _without_effect(config, ("format",), "give export=<folder> or import=<file>", unless=imports or exports)
    to_rows = exports and config["format"] == "rows"
    why = "only rows are exported with it; leave it out" if exports else "give export=<folder>, or leave it out"
    _without_effect(config, _OF_ROWS, why, unless=to_rows)
    if exports and Path(exports).is_file():
        raise UserError(f"export: {exports} is a file; give a folder")
    if config["labelers"] == []:
        raise UserError("labelers: found an empty list; name whose judgements count, or give null for everybody's")


def check_store(url: str) -> None:
    """Raise UserError if a store of SQLite that is to be read is not there: opening it would make an empty one."""
    file = Path(url.removeprefix(SQLITE).partition("?")[0])
    if url.startswith(SQLITE) and not file.is_file():
        raise UserError(f"feedback.store: {file} does not exist; rlhf-collect makes a store, or give another one")


def _without_effect(config: Mapping[str, Any], keys: tuple[str, ...], why: str, unless: Any) -> None:
    """Refuse a setting that is not the shipped one and that nothing reads."""
    given = shipped("agreement")
    for key in keys:
        if not unless and config[key] != given[key]:
            raise UserError(f"{key}: it has no effect here; {why}")
