"""What a model folder from elsewhere may refer to: weights inside it, and code that is installed here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from rlhf_lightning.errors import UserError, blaming, named

_ATTENTION = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")


def check_foreign_folder(source: str, revision: str | None, trust_remote_code: bool) -> None:
    """Check that a folder, or a model of the hub, names no weights outside it and no code to download.

    Raises:
        UserError: an index of weights that points outside the folder, or attention kernels from the hub.
    """
    for index in sorted(Path(source).glob("*.index.json")) if Path(source).is_dir() else ():
        with blaming(f"{named()}: {index} cannot be read", "save the model again"):
            files = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            outside = [name for name in files if not _is_plain(name)]
        if outside:
            raise UserError(
                f"{named()}: {index}: weight_map names {outside[0]!r}; must be the name of a file in the same folder"
            )
    kernels = [] if trust_remote_code else list(_kernels(_config_of(source, revision)))
    if kernels:
        raise UserError(
            f"{named()}: the config.json of {source} asks for the attention {kernels[0]!r}, which is code from the hub "
            "and is not run; remove it from config.json, or read the code and give model.trust_remote_code=true with "
            "model.revision"
        )


def is_code_of_the_hub(attention: str | None) -> bool:
    """Return whether an attention implementation is named like a repository, `org/kernel`."""
    return attention is not None and "/" in attention


def _is_plain(name: Any) -> bool:
    if not isinstance(name, str) or "\0" in name:
        return False
    parts = {PurePosixPath(name).name, PureWindowsPath(name).name}
    return parts == {name} and name not in (".", "..", "")


def _config_of(source: str, revision: str | None) -> dict[str, Any]:
    """Return the content of config.json; empty if it cannot be read, which loading reports itself."""
    from transformers import PreTrainedConfig

    try:
        return dict(PreTrainedConfig.get_config_dict(source, revision=revision)[0])
    except Exception:  # each cause has its own message when the model is loaded
        return {}


def _kernels(config: Mapping[str, Any]) -> Iterator[str]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            inner = value.values() if key in _ATTENTION else ()
            yield from (name for name in inner if isinstance(name, str) and is_code_of_the_hub(name))
            yield from _kernels(value)
        elif key in _ATTENTION and isinstance(value, str) and is_code_of_the_hub(value):
            yield value
