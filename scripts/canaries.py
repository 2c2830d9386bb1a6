"""Plant payloads in everything that comes from outside, run the commands over them, and count how many fire.

    python scripts/canaries.py                 all of them; exit 1 if one fires
    python scripts/canaries.py --only pickle   those whose name contains the text

A payload that runs code writes a file `FIRED`. One that is meant for a terminal, a page or a card fires if it comes out
as it went in. A command may refuse the input or work with it; it may not let the payload act.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bad_input_catalogue.case import DPO, EVALUATE, PPO, SFT, changed, nothing, writes
from bad_input_catalogue.fixtures import edit_json, write_fixtures, write_rows
from forked_command import preload, run_command

FIRES = "open('FIRED', 'w').close()\n"
ESCAPES = "\x1b[31m\x1b]0;owned\x07\x9b2J\u202e"
MARKUP = "<script>alert(1)</script><img src=x onerror=alert(1)>"
SECONDS = 120


@dataclass(frozen=True)
class Canary:
    """A payload, and the command that meets it.

    Args:
        name: of the canary.
        command, words: what is run.
        plant: puts the payload into the working folder.
        raw: a regular expression that must match nothing that the command prints.
        files: shell patterns of files that must not hold `raw` either.
        typed: what standard input holds.
    """

    name: str
    command: str
    words: list[str]
    plant: Callable[[Path], object] = nothing
    raw: str = ""
    files: tuple[str, ...] = ()
    typed: bytes = b""
    outside: tuple[str, ...] = field(default=())


class Bomb:
    """Unpickling it writes the file."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, (FIRES,)


def pickled(name: str) -> Callable[[Path], object]:
    """Something that writes a pickle as torch used to."""

    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Bomb(), protocol=2))
            archive.writestr("archive/version", "3")

    return write


def only_pickled_weights(folder: Path) -> None:
    """A model whose weights are a pickle."""
    (folder / "model/model.safetensors").unlink()
    pickled("model/pytorch_model.bin")(folder)


def code_beside(part: str) -> Callable[[Path], object]:
    """A model folder whose config or tokenizer asks for its own code."""

    def plant(folder: Path) -> None:
        (folder / "model/own.py").write_text(FIRES + "raise RuntimeError('it ran')\n")
        if part == "model":
            names = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
            edit_json("model/config.json", auto_map=names, model_type="own", architectures=["Own"])(folder)
        elif part == "known model":
            edit_json("model/config.json", auto_map={"AutoModelForCausalLM": "own.Model"})(folder)
        else:
            names = {"AutoTokenizer": ["own.Tokenizer", "own.Tokenizer"]}
            edit_json("model/tokenizer_config.json", auto_map=names, tokenizer_class="Own")(folder)

    return plant


def template(text: str) -> Callable[[Path], object]:
    """Rows of messages, and a tokenizer with a chat template of the attacker's."""

    def plant(folder: Path) -> None:
        (folder / "model/chat_template.jinja").write_text(text)
        edit_json("model/tokenizer_config.json", chat_template=text)(folder)
        messages = [{"role": "user", "content": "how"}, {"role": "assistant", "content": " you can"}]
        write_rows(folder / "rows.jsonl", [{"messages": messages}] * 4)

    return plant


def hostile_prompts(text: str) -> Callable[[Path], object]:
    """Prompts that hold the text."""
    return lambda folder: write_rows(folder / "prompts.jsonl", [{"prompt": f"how {text} do", "kind": text}] * 8)


def hostile_run_name(folder: Path) -> None:
    """A run folder whose config holds markup and escape sequences in every text."""
    file = folder / "run/config.yaml"
    text = json.dumps(f"x{MARKUP}{ESCAPES} | [a](javascript:alert(1))")
    lines = [f"name: {text}" if line.startswith("name:") else line for line in file.read_text().splitlines()]
    file.write_text("\n".join(lines) + "\n")


def link_at_temporary_name(folder: Path) -> None:
    """A link planted where a file is about to be written."""
    (folder / "new").mkdir()
    for name in (".config.yaml.tmp", ".summary.json.tmp"):
        (folder / "new" / name).symlink_to(folder / "rows.jsonl")


CODE_IN_FOLDERS = [
    Canary(f"code of a {part}, {command}", command, words, code_beside(part), typed=b"y\n" * 20)
    for part in ("model", "known model", "tokenizer")
    for command, words in {
        "train": SFT,
        "plan": ["experiment=sft", "model.path=model"],
        "chat": ["model=model", "max_new_tokens=2"],
        "evaluate": EVALUATE,
    }.items()
] + [
    Canary(
        "code of a reward model",
        "train",
        changed(PPO, "reward.function=null", "reward.model=model"),
        code_beside("model"),
        typed=b"y\n" * 20,
    ),
]
PICKLES = [
    Canary("pickle as weights", "train", SFT, only_pickled_weights),
    Canary("pickle as weights, chat", "chat", ["model=model"], only_pickled_weights),
    Canary("pickle as checkpoint", "train", [*SFT, "ckpt=bad.ckpt", "run_dir=new"], pickled("bad.ckpt")),
    Canary(
        "pickle as last checkpoint", "train", [*SFT, "ckpt=last", "run_dir=new"], pickled("new/checkpoints/last.ckpt")
    ),
    Canary(
        "pickle as reference table",
        "train",
        [*DPO, "algorithm.precompute_reference=true", "run_dir=new"],
        pickled("new/reference_logprobs.pt"),
    ),
    Canary(
        "pickle as adapter",
        "train",
        changed(SFT, "model.path=adapter"),
        lambda folder: (
            (folder / "adapter/adapter_model.safetensors").unlink(),
            pickled("adapter/adapter_model.bin")(folder),
        ),
    ),
    Canary("pickle as training arguments", "train", SFT, pickled("model/training_args.bin")),
    Canary("pickle as rows", "train", changed(SFT, "data.train=rows.pkl"), pickled("rows.pkl")),
    Canary(
        "pickle in a datasets folder",
        "train",
        changed(SFT, "data.train=rows"),
        lambda folder: [pickled("rows/train.pkl")(folder), pickled("rows/data.bin")(folder)],
    ),
]
PROGRAMS = [
    Canary(
        "a dataset's script",
        "train",
        changed(SFT, "data.train=rows"),
        lambda folder: [
            writes("rows/rows.py", FIRES)(folder),
            write_rows(folder / "rows/train.jsonl", [{"prompt": "a", "completion": "b"}]),
        ],
    ),
    Canary(
        "YAML tag in a config",
        "train",
        ["--config-dir", "conf", "experiment=mine"],
        writes("conf/experiment/mine.yaml", "a: !!python/object/apply:exec [\"open('FIRED','w')\"]\n"),
    ),
    Canary(
        "YAML tag in a run's config",
        "export",
        ["run=run", "to=out"],
        writes("run/config.yaml", "a: !!python/object/apply:exec [\"open('FIRED','w')\"]\nmodel: {}\nalgorithm: {}\n"),
    ),
    Canary(
        "_target_ in a model's config",
        "train",
        SFT,
        edit_json("model/config.json", _target_="builtins.exec", _args_=[FIRES]),
    ),
    Canary(
        "_target_ in a row",
        "train",
        SFT,
        lambda folder: write_rows(
            folder / "rows.jsonl",
            [{"prompt": "a", "completion": "b", "_target_": "builtins.exec", "_args_": [FIRES]}] * 8,
        ),
    ),
    Canary(
        "interpolation in a row",
        "train",
        SFT,
        lambda folder: write_rows(folder / "rows.jsonl", [{"prompt": "${oc.env:HOME}", "completion": "b"}] * 8),
    ),
    Canary("template that reaches Python", "train", SFT, template("{{ ''.__class__.__mro__[1].__subclasses__() }}")),
    Canary(
        "template that imports", "train", SFT, template("{{ cycler.__init__.__globals__.os.system('touch FIRED') }}")
    ),
    Canary(
        "template that imports, chat",
        "chat",
        ["model=model", "max_new_tokens=2"],
        template("{{ joiner.__init__.__globals__.os.system('touch FIRED') }}"),
        typed=b"how\n",
    ),
    Canary("template that reads a file", "train", SFT, template("{% include '/etc/passwd' %}"), raw="root:"),
]
SHADOWS = [
    Canary(f"a file named {name}.py, {command}", command, words, writes(f"{name}.py", FIRES))
    for name in (
        "sentencepiece",
        "tiktoken",
        "flash_attn",
        "deepspeed",
        "wandb",
        "git",
        "readline",
        "json",
        "sitecustomize",
        "mlflow_skinny",
    )
    for command, words in (("train", SFT),)
]
PATHS = [
    Canary(
        "name escapes", "train", changed(SFT, "name=../../escaped"), outside=("escaped", "../escaped", "../../escaped")
    ),
    Canary(
        "stage escapes",
        "pipeline",
        ["pipeline=demo", "logger=none", "+stages.../../escaped.experiment=sft_demo"],
        outside=("escaped", "../escaped"),
    ),
    Canary(
        "policy escapes",
        "evaluate",
        changed(EVALUATE, "policies={'../../escaped': model, b: run}", "baseline=b", "run_dir=e"),
        outside=("escaped", "../escaped"),
    ),
    Canary(
        "a link at a temporary name",
        "train",
        [*SFT, "run_dir=new"],
        link_at_temporary_name,
        raw="experiment",
        files=("rows.jsonl",),
    ),
    Canary(
        "export through a link",
        "export",
        ["run=run", "to=link", "overwrite=true"],
        lambda folder: (folder / "link").symlink_to(folder / "scorer"),
    ),
]
SHOWN = [
    Canary(
        "escapes in a column's name",
        "train",
        SFT,
        lambda folder: write_rows(folder / "rows.jsonl", [{f"col{ESCAPES}": 1}]),
        raw="[\x1b\x9b\x07\u202e]",
    ),
    Canary("escapes in a path", "train", changed(SFT, "data.train='no\x1b[31mwhere.jsonl'"), raw="[\x1b\x9b\x07]"),
    Canary(
        "escapes in what a model says",
        "chat",
        ["model=model", "max_new_tokens=8"],
        lambda folder: escaping_tokenizer(folder),
        raw="[\x1b\x9b\x07\u202e]",
        typed=b"how\n",
    ),
    Canary(
        "escapes in prompts",
        "evaluate",
        [*EVALUATE, "run_dir=e"],
        hostile_prompts(ESCAPES),
        raw="[\x1b\x9b\x07\u202e]",
        files=("e/*.html",),
    ),
    Canary(
        "markup in prompts",
        "evaluate",
        [*EVALUATE, "run_dir=e"],
        hostile_prompts(MARKUP),
        raw="<script>alert|<img src=x",
        files=("e/*.html",),
    ),
    Canary(
        "markup in a policy's name",
        "evaluate",
        changed(EVALUATE, "policies={'[red]a[/red]<b>': model, b: run}", "baseline=b", "run_dir=e"),
        raw=r"<b>.*</(th|p)>|\x1b",  # in the page; a terminal shows it as it is
        files=("e/*.html",),
    ),
    Canary(
        "markup in a run's name",
        "export",
        ["run=run", "to=out"],
        hostile_run_name,
        raw=r"(?<!\\)<script>(?![^`]*`)|\x1b",
        files=("out/README.md",),
    ),
    Canary(
        "a password in the tracker's address",
        "train",
        [
            *(word for word in SFT if word != "logger=none"),
            "logger.tracking_uri=http://ana:hunter2@127.0.0.1:9",
            "run_dir=new",
        ],
        raw="hunter2",
        files=("new/*",),
    ),
    Canary(
        "a key in tags",
        "export",
        ["run=run", "to=out"],
        lambda folder: (folder / "run/config.yaml").write_text(
            (folder / "run/config.yaml").read_text() + "logger:\n  tags: {note: hunter2}\n"
        ),
        raw="hunter2",
        files=("out/README.md",),
    ),
]
CANARIES = [*CODE_IN_FOLDERS, *PICKLES, *PROGRAMS, *SHADOWS, *PATHS, *SHOWN]


def escaping_tokenizer(folder: Path) -> None:
    """A tokenizer whose every word is an escape sequence."""
    file = folder / "model/tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    renamed = {word if word.startswith("<") else f"\x1b[{i}m{i}": i for word, i in vocabulary.items()}
    content["model"]["vocab"] = renamed
    file.write_text(json.dumps(content))


def what_fired(canary: Canary, fixtures: Path) -> str:
    """How the payload acted, or nothing."""
    with tempfile.TemporaryDirectory(prefix="canary-") as scratch:
        folder = Path(scratch) / "a" / "b" / "work"
        shutil.copytree(fixtures, folder, symlinks=True)
        code, out, err = run_command(
            canary.command, canary.words, folder, canary.plant, Path(scratch), SECONDS, canary.typed
        )
        if code is None:
            return f"no answer within {SECONDS} s"
        if any(Path(scratch).rglob("FIRED")):
            return "its code ran"
        if found := [path for path in canary.outside if (folder / path).exists() and not (fixtures / path).exists()]:
            return f"it wrote {found[0]}"
        texts = {"what the command printed": out + err}
        for pattern in canary.files:
            texts |= {
                str(path.relative_to(folder)): path.read_text(errors="replace")
                for path in folder.glob(pattern)
                if path.is_file()
            }
        return next(
            (f"it stands in {name}" for name, text in texts.items() if canary.raw and re.search(canary.raw, text)), ""
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="run the canaries whose name contains this")
    arguments = parser.parse_args()
    canaries = [canary for canary in CANARIES if arguments.only in canary.name]
    preload()
    fired = 0
    with tempfile.TemporaryDirectory(prefix="canaries-") as scratch:
        fixtures = Path(scratch) / "fixtures"
        write_fixtures(fixtures)
        for canary in canaries:
            how = what_fired(canary, fixtures)
            fired += bool(how)
            print(f"{'FIRED' if how else 'quiet'} {canary.name}{f': {how}' if how else ''}", flush=True)
    print(f"{fired} of {len(canaries)} fired")
    return 1 if fired else 0


if __name__ == "__main__":
    sys.exit(main())
