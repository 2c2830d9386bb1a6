"""Protections removed one at a time, and readers without any: they show that a payload can fire at all."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from canary_catalogue.canary import Act


def replace(home: str, name: str, by: Any) -> None:
    """Replace a function wherever it was imported to."""
    module = __import__(home, fromlist=[name])
    former = getattr(module, name)
    for each in [module, *sys.modules.values()]:
        with contextlib.suppress(Exception):
            if vars(each).get(name) is former:
                setattr(each, name, by)


def as_it_is(text: str) -> str:
    """Return the text unchanged, as a missing protection would."""
    return text


def raw_text(folder: Path) -> None:
    """Let text from outside pass unchanged."""
    for name in ("for_terminal", "on_one_line", "for_html", "for_markdown", "as_code"):
        replace("rlhf_lightning.outside_text", name, as_it_is)


def open_secrets(folder: Path) -> None:
    """Show and write secrets."""
    replace("rlhf_lightning.secret_text", "shown", as_it_is)
    replace("rlhf_lightning.secret_text", "without_secrets", lambda value, key="": value)


def whole_config_in_card(folder: Path) -> None:
    """Write the whole config into the card."""
    open_secrets(folder)
    import rlhf_lightning.runs.model_card as card

    card._config = lambda config: str(dict(config))  # type: ignore[assignment]


def trusting(folder: Path) -> None:
    """Run code in model folders, as transformers does once somebody has answered y."""
    import transformers.dynamic_module_utils as dynamic
    import transformers.models.auto as auto

    for part in (auto.auto_factory, auto.configuration_auto, auto.tokenization_auto, dynamic):
        part.resolve_trust_remote_code = lambda *_, **__: True  # type: ignore[attr-defined]


def unpickling(folder: Path) -> None:
    """Let `torch.load` run what a pickle contains."""
    import torch

    load = torch.load
    torch.load = lambda *arguments, **more: load(*arguments, **{**more, "weights_only": False})  # type: ignore


def reads(read: Callable[[Path], object]) -> Act:
    """Return a reader that replaces the command."""

    def control(folder: Path) -> None:
        try:
            read(folder)
        finally:
            sys.stdout.flush()
            raise SystemExit(0)

    return control


def unpickles(name: str) -> Act:
    """Return a reader that takes a pickle, plain or torch's, for data."""

    def read(folder: Path) -> None:
        import torch

        try:
            torch.load(folder / name, weights_only=False)
        except Exception:
            pickle.loads((folder / name).read_bytes())

    return reads(read)


def imports(name: str) -> Act:
    """Return Python itself, with the working folder first on its path."""
    return reads(lambda folder: subprocess.run([sys.executable, "-c", f"import {name}"], cwd=folder, check=False))


def runs(name: str) -> Act:
    """Return Python running the file."""
    return reads(lambda folder: subprocess.run([sys.executable, name], cwd=folder, check=False))


def loads_yaml(name: str) -> Act:
    """Return a reader of YAML as PyYAML once was."""

    def read(folder: Path) -> None:
        import yaml

        yaml.load((folder / name).read_text(), Loader=yaml.UnsafeLoader)

    return reads(read)


def instantiates(section: dict[str, Any]) -> Act:
    """Return Hydra's `instantiate` on something from a file."""

    def read(folder: Path) -> None:
        from hydra.utils import instantiate

        instantiate(section)

    return reads(read)


def renders(text: str) -> Act:
    """Return Jinja without sandbox and limits."""

    def read(folder: Path) -> None:
        from jinja2 import Environment, FileSystemLoader

        print(Environment(loader=FileSystemLoader("/")).from_string(text).render(messages=[{"content": "a"}] * 3))

    return reads(read)


def prints(*names: str) -> Act:
    """Return `cat`."""

    def read(folder: Path) -> None:
        for name in names:
            print((folder / name).read_text(errors="surrogateescape"), flush=True)

    return reads(read)


def follows(name: str, text: str) -> Act:
    """Return `open(name, "w")`, which follows a link."""
    return reads(lambda folder: (folder / name).write_text(text))


def any_name(folder: Path) -> None:
    """Accept any name."""
    replace("rlhf_lightning.config.validation", "validate", lambda *_, **__: None)


def makes(path: str) -> Act:
    """Return a reader that creates a folder wherever a name leads."""
    return reads(lambda folder: os.makedirs(folder / path, exist_ok=True))
