"""Names and links that lead out of the folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from bad_input_catalogue.case import DPO, EVALUATE, SFT, changed, nothing

from canary_catalogue.canary import Act, Canary
from canary_catalogue.controls import follows, makes, reads

NAMES = {
    "..": "..",
    "../../escaped": "../../escaped",
    "an absolute path": "/tmp/canary-escaped/../../..{folder}/../escaped",
    "a backslash": "..\\escaped",
    "one dot": ".",
    "a leading dot": ".escaped",
    "a leading minus": "-rf",
    "a newline": '"a\\n../escaped"',
    "a NUL": '"a\\0b"',
    "a dot of another script": "\u2024\u2024/escaped",
    "a slash of another script": "..\u2215escaped",
    "a very long name": "a" * 300,
}
VICTIM = "as it was\n"


def victim(*plants: Act) -> Act:
    """Return an action that plants links next to a file and a folder that nobody may touch."""

    def plant(folder: Path) -> None:
        (folder.parent / "victim").mkdir()
        for name in ("file", "empty", "metrics"):
            (folder.parent / "victim" / name).write_text({"file": VICTIM, "metrics": '{"step": 1}\n'}.get(name, ""))
        for each in plants:
            each(folder)

    return plant


def linked(name: str, to: str, how: Callable[[Path, Path], object] = os.symlink) -> Act:
    """Return an action that creates a link at a name in the working folder."""

    def plant(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        how(folder.parent / "victim" / to, folder / name)

    return plant


def link(
    name: str, words: list[str], at: str, to: str, *, command: str = "train", hard: bool = False, fast: bool = False
) -> Canary:
    """Return a canary with a link where a command writes: the other end must not change."""
    changed_file = f"../victim/{to}" if to in ("file", "empty", "metrics") else ""
    made = (
        ()
        if changed_file
        else (
            f"../victim/{to}" if to == "new" else "../victim/last.ckpt",
            "../victim/config.json",
            "../victim/.started",
        )
    )
    return Canary(
        name,
        command,
        words,
        victim(linked(at, "" if to == "folder" else to, os.link if hard else os.symlink)),
        raw=r"\A(?!as it was\n\Z|\{\"step\": 1\}\n\Z|\Z)" if changed_file else "",
        files=(changed_file,) if changed_file else (),
        outside=made,
        control=follows(at if changed_file or to == "new" else f"{at}/config.json", "written\n"),
        fast=fast,
    )


NEW = [*SFT, "run_dir=new"]
PATHS: list[Canary] = [
    *(
        Canary(
            f"a run's name is {kind}",
            "train",
            changed(SFT, f"name={json.dumps(name) if not name.startswith(chr(34)) else name}"),
            outside=(
                "escaped",
                "../escaped",
                "../../escaped",
                "outputs/.escaped",
                "outputs/-rf",
                "outputs/..\\escaped",
            ),
            control=makes("../escaped"),
            fast=kind == "..",
        )
        for kind, name in NAMES.items()
    ),
    Canary(
        "a stage's name escapes",
        "pipeline",
        ["pipeline=demo", "logger=none", "+stages.../../escaped.experiment=sft_demo"],
        outside=("escaped", "../escaped"),
        control=makes("../escaped"),
    ),
    Canary(
        "a policy's name escapes",
        "evaluate",
        changed(EVALUATE, "policies={'../../escaped': model, b: run}", "baseline=b", "run_dir=e"),
        outside=("escaped", "../escaped"),
        control=makes("../escaped"),
    ),
    link("a link at a temporary name", NEW, "new/.config.yaml.tmp", "file"),
    link("a link at the temporary summary", NEW, "new/.summary.json.tmp", "file"),
    link("a link at the config", NEW, "new/config.yaml", "file"),
    link("a link at the metrics", NEW, "new/metrics.jsonl", "metrics"),
    link("a link at the metrics that leads nowhere", NEW, "new/metrics.jsonl", "new"),
    link("a hard link at the metrics", NEW, "new/metrics.jsonl", "empty", hard=True),
    link("a link at the lock", NEW, "new/.lock", "file"),
    link("a hard link at the lock", NEW, "new/.lock", "file", hard=True, fast=True),
    link("a link at the model", NEW, "new/model", "folder"),
    link("a link at the new model", NEW, "new/.model.new", "folder"),
    link("a link at the checkpoints", NEW, "new/checkpoints", "folder"),
    link(
        "a link at the reference table",
        [*DPO, "algorithm.precompute_reference=true", "run_dir=new"],
        "new/reference_logprobs.pt",
        "file",
    ),
    link("a link at a page", [*EVALUATE, "run_dir=e"], "e/report.html", "file", command="evaluate"),
    link("a link at a picture", [*EVALUATE, "run_dir=e"], "e/report.png", "file", command="evaluate"),
    link("an export through a link", ["run=run", "to=out", "overwrite=true"], "out", "folder", command="export"),
    link("an export to a file's link", ["run=run", "to=out", "overwrite=true"], "out", "file", command="export"),
]
DELETES = [
    Canary(
        f"an export over {kind}",
        "export",
        ["run=run", f"to={to}", "overwrite=true"],
        lambda folder: [(folder / each / "canary.txt").touch() for each in ("model", "scorer", "run")],
        outside=(f"{to}/.rlhf-export.json",),
        control=reads(lambda folder, to=to: (folder / to / ".rlhf-export.json").touch()),  # type: ignore[misc]
    )
    for kind, to in {
        "a model": "scorer",
        "its base": "model",
        "itself": "run",
        "its own model": "run/model",
        "everything": ".",
    }.items()
]
PATHS += DELETES
assert nothing
