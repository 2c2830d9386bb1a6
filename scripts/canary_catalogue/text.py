"""Escape sequences, markup and secrets, on the way to a terminal, a page, a card, a table or a log."""

from __future__ import annotations

import json
from pathlib import Path

from bad_input_catalogue.case import EVALUATE, PPO, SFT, changed, nothing, writes
from bad_input_catalogue.fixtures import write_rows

from canary_catalogue.canary import ACTS, ESCAPES, MARKUP, SECRET, Act, Canary, all_of
from canary_catalogue.controls import open_secrets, raw_text, replace, whole_config_in_card


def unguarded(folder: Path) -> None:
    """Leave streams and messages as Python made them."""
    import contextlib

    import rlhf_lightning.commands.command_line  # noqa: F401

    replace("rlhf_lightning.guarded_streams", "guarded_streams", contextlib.nullcontext)
    raw_text(folder)


def unguarded_and_open(folder: Path) -> None:
    """Hide and spell out nothing."""
    unguarded(folder)
    open_secrets(folder)


def hostile_prompts(text: str) -> Act:
    """Return an action that writes prompts and kinds containing the text."""
    return lambda folder: write_rows(folder / "prompts.jsonl", [{"prompt": f"how {text} do", "kind": text}] * 8)


def hostile_run(folder: Path) -> None:
    """Write a run folder whose config has markup and escape sequences in every text."""
    file = folder / "run/config.yaml"
    text = json.dumps(f"x{MARKUP}{ESCAPES} | [a](javascript:alert(1))")
    lines = [f"name: {text}" if line.startswith("name:") else line for line in file.read_text().splitlines()]
    file.write_text("\n".join(lines) + "\n")


def in_config(key: str, value: object) -> Act:
    """Return an action that changes a value in a run's config."""

    def plant(folder: Path) -> None:
        import yaml

        file = folder / "run/config.yaml"
        file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), key: value}))

    return plant


def escaping_tokenizer(folder: Path) -> None:
    """Write a tokenizer whose every word is an escape sequence."""
    file = folder / "model/tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = {word if word.startswith("<") else f"\x1b[{i}m{i}": i for word, i in vocabulary.items()}
    file.write_text(json.dumps(content))


def module(body: str) -> Act:
    """Return an action that writes a module with a reward that runs the text before it scores."""
    text = f"import logging, sys, warnings\nTEXT = {ESCAPES + SECRET!r}\n\ndef score(prompts, responses, **columns):\n"
    return writes("mine.py", f"{text}    {body}\n    return [1.0] * len(responses)\n")


def config(name: str, value: object) -> Act:
    """Return an action that writes a user's config, `extra=mine`, with this value under a key."""
    return writes("conf/extra/mine.yaml", f"# @package _global_\n{name}: {json.dumps(value)}\n")


QUOTED = f"'x{ESCAPES}'"
SCREEN: list[Canary] = [
    Canary(name, command, words, plant, raw=ACTS, control=unguarded, typed=typed, fast=fast)
    for name, command, words, plant, typed, fast in (
        (
            "escapes in a column's name",
            "train",
            SFT,
            lambda f: write_rows(f / "rows.jsonl", [{f"col{ESCAPES}": 1}]),
            b"",
            True,
        ),
        ("escapes in a path", "train", changed(SFT, f"data.train={QUOTED}"), nothing, b"", False),
        ("escapes in a key", "train", [*SFT, f"a{ESCAPES}=1"], nothing, b"", False),
        ("escapes in an option", "train", [f"--a{ESCAPES}"], nothing, b"", False),
        ("escapes in a value", "train", [*SFT, f"seed={QUOTED}"], nothing, b"", False),
        ("escapes in an override that cannot be read", "train", [f"a{ESCAPES}"], nothing, b"", False),
        ("escapes in a config's folder", "train", ["--config-dir", f"x{ESCAPES}"], nothing, b"", False),
        (
            "escapes in a config that is printed",
            "train",
            [*SFT, "--cfg", "job", f"name='x{ESCAPES}'"],
            nothing,
            b"",
            False,
        ),
        ("escapes in what a sweep prints", "train", ["-m", *SFT, f"seed=1,{QUOTED}"], nothing, b"", False),
        ("escapes in a run's name", "train", [*SFT, f"name={QUOTED}"], nothing, b"", False),
        (
            "escapes in a policy's name",
            "evaluate",
            changed(EVALUATE, f"policies={{{QUOTED}: model}}"),
            nothing,
            b"",
            False,
        ),
        (
            "escapes in a stage's name",
            "pipeline",
            ["pipeline=demo", f"+stages.a{ESCAPES}.experiment=x"],
            nothing,
            b"",
            False,
        ),
        ("escapes in a model that does not exist", "chat", [f"model='./x{ESCAPES}'"], nothing, b"", False),
        ("escapes in a command of the chat", "chat", ["model=model"], nothing, f"/a{ESCAPES}\n".encode(), False),
        (
            "escapes in what a model says",
            "chat",
            ["model=model", "max_new_tokens=8"],
            escaping_tokenizer,
            b"how\n",
            False,
        ),
        (
            "escapes in a model's type",
            "train",
            SFT,
            lambda f: writes("model/config.json", json.dumps({"model_type": f"x{ESCAPES}"}))(f),
            b"",
            False,
        ),
        ("escapes that a reward prints", "train", PPO, module("print(TEXT)"), b"", False),
        (
            "escapes that a reward writes to the log",
            "train",
            PPO,
            module("logging.getLogger('x').error(TEXT)"),
            b"",
            False,
        ),
        ("escapes that a reward warns of", "train", PPO, module("warnings.warn(TEXT)"), b"", False),
        ("escapes that a reward raises", "train", PPO, module("raise ValueError(TEXT)"), b"", False),
        ("escapes in a traceback", "train", [*PPO, "debug=true"], module("raise ValueError(TEXT)"), b"", False),
        (
            "escapes in a chat template's complaint",
            "train",
            SFT,
            all_of(
                writes("model/chat_template.jinja", "{{ raise_exception(messages[0].content) }}"),
                lambda f: write_rows(
                    f / "rows.jsonl",
                    [{"messages": [{"role": "user", "content": ESCAPES}, {"role": "assistant", "content": "a"}]}] * 4,
                ),
            ),
            b"",
            False,
        ),
    )
]

PAGES = [
    Canary(
        "escapes in prompts",
        "evaluate",
        [*EVALUATE, "run_dir=e"],
        hostile_prompts(ESCAPES),
        raw=ACTS,
        files=("e/*.html",),
        control=raw_text,
    ),
    Canary(
        "markup in prompts",
        "evaluate",
        [*EVALUATE, "run_dir=e"],
        hostile_prompts(MARKUP),
        raw="<script>alert|<img src=x",
        files=("e/*.html",),
        control=raw_text,
    ),
    Canary(
        "the end of an attribute in prompts",
        "evaluate",
        [*EVALUATE, "run_dir=e"],
        hostile_prompts("\" onmouseover='alert(1)' x=\"</script></style></title><svg onload=alert(1)>"),
        raw='<svg|" onmouseover|</style></title>',
        files=("e/*.html",),
        control=raw_text,
    ),
    Canary(
        "markup in a policy's name",
        "evaluate",
        ["--config-dir", "conf", "+extra=mine", *EVALUATE[2:], "baseline=b", "run_dir=e"],
        config("policies", {"[red]a[/red]<b>": "model", "b": "run"}),
        raw=r"<b>.*</(th|p)>|\x1b",  # in the page; a terminal shows it unchanged
        files=("e/*.html",),
        control=raw_text,
    ),
    Canary(
        "markup in a run's name",
        "export",
        ["run=run", "to=out"],
        hostile_run,
        raw=r"(?m)^(?!name: ).*(?<!\\)<script>(?![^`]*`)|\x1b",
        files=("out/README.md",),
        control=raw_text,
        fast=True,
    ),
]


def secret(
    name: str,
    words: list[str],
    *,
    where: tuple[str, ...] = ("new/**/*",),
    control: Act = unguarded_and_open,
    fast: bool = False,
    plant: Act = nothing,
    command: str = "train",
) -> Canary:
    """Return a canary with a secret that must not be printed, nor be in any of these files."""
    return Canary(name, command, words, plant, raw=SECRET, files=where, control=control, fast=fast)


TRACKED = [*(word for word in SFT if word != "logger=none"), "run_dir=new", "logger.tracking_uri=sqlite:///new/m.db"]


def environment(**variables: str) -> Act:
    """Return an action that sets environment variables."""

    def plant(folder: Path) -> None:
        import os

        os.environ.update(variables)

    return plant


SECRETS = [
    secret(
        "a password in the tracker's address",
        [*changed(TRACKED, f"logger.tracking_uri=http://ana:{SECRET}@127.0.0.1:9")],
    ),
    secret(
        "a password with an @ in the tracker's address",
        [*changed(TRACKED, f"logger.tracking_uri='http://ana:x@{SECRET}@127.0.0.1:9'")],
    ),
    secret(
        "a key in the tracker's address", changed(TRACKED, f"logger.tracking_uri='http://127.0.0.1:9/?token={SECRET}'")
    ),
    secret(
        "a password in the server's address",
        changed(PPO, "rollout=vllm", f"rollout.server=http://ana:{SECRET}@127.0.0.1:9", "rollout.timeout=2"),
    ),
    secret(
        "a secret tag",
        [*TRACKED, f"+logger.tags.api_key={SECRET}", "callbacks.resume=null"],
        where=("new/config.yaml", "new/model/README.md", "new/summary.json", "new/mlflow.json", "new/*.ckpt"),
    ),
    secret(
        "a secret of the environment in tags",
        [*TRACKED, "+logger.tags.who='${oc.env:CANARY_WORD}'"],
        plant=environment(CANARY_WORD=SECRET),
        where=("new/config.yaml", "new/model/README.md", "new/summary.json", "new/mlflow.json"),
    ),
    secret(
        "a secret of the environment in a path",
        changed(SFT, "data.train='${oc.env:CANARY_WORD}/rows.jsonl'"),
        plant=environment(CANARY_WORD=SECRET),
    ),
    secret("a secret tag, printed", [*TRACKED, f"+logger.tags.api_key={SECRET}", "--cfg", "job"], fast=True),
    secret(
        "a secret in a sweep",
        ["-m", *SFT, "logger=mlflow", f"+logger.tags.password={SECRET}", "data.train=no.jsonl", "seed=1,2"],
        where=("outputs/**/*",),
    ),
    secret("a password in an address of no store", changed(TRACKED, f"logger.tracking_uri='ftp://ana:{SECRET}@x'")),
    secret(
        "a secret in a library's message",
        PPO,
        plant=all_of(environment(HF_TOKEN=SECRET), module("raise ValueError(TEXT)")),
    ),
    secret(
        "a secret in a traceback",
        [*PPO, "debug=true"],
        plant=all_of(environment(OTHER_API_KEY=SECRET), module("raise ValueError(TEXT)")),
    ),
    secret(
        "a proxy's password in a warning",
        PPO,
        plant=all_of(environment(HTTPS_PROXY=f"http://u:{SECRET}@p:1"), module("warnings.warn(TEXT)")),
    ),
    secret(
        "a key in a previous run's tags",
        ["run=run", "to=out"],
        plant=in_config("logger", {"tags": {"note": SECRET}}),
        where=("out/README.md",),
        control=whole_config_in_card,
        command="export",
    ),
]
TEXT = [*SCREEN, *PAGES, *SECRETS]
