"""A tracking store: whether a run has one, where its artifacts are, how it is opened, and what is said about it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_lightning.environment import typed
from rlhf_lightning.secret_text import HIDDEN, shown

if TYPE_CHECKING:
    from rlhf_lightning.callbacks.notice import Notice


def uses_mlflow(config: Mapping[str, Any]) -> bool:
    """Return whether the logger section is MLflow's."""
    return str((config.get("logger") or {}).get("_target_", "")).endswith("MLFlowLogger")


def artifact_location(uri: str) -> str | None:
    """Return where artifacts go: next to a local store's file, from any working folder; a server has its own place."""
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts").as_uri()


def ui_command(uri: str) -> str:
    """Return the command that opens MLflow's pages on a store, or where a server has them."""
    if uri.startswith("http"):
        return f"open {shown(uri)}"
    return f"{typed('mlflow')} ui --backend-store-uri {shlex.quote(shown(uri))}"


def store_notice(uri: str, folder: Path) -> Notice:
    """Return what says, in one line, that a store does not accept a run, and how to send it later."""
    from rlhf_lightning.callbacks.notice import Notice

    given_again = " tracking_uri=<its address, with the password>" if HIDDEN in shown(uri) else ""
    later = f"rlhf-track run={shlex.quote(str(folder))}{given_again}"
    return Notice(shown(uri), later, say=lambda line: print(line, file=sys.stderr, flush=True), clean=shown)
