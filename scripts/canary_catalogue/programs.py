"""Programs instead of data: YAML tags, `_target_`, interpolations, chat templates that reach out or never end."""

from __future__ import annotations

import json
from pathlib import Path

from bad_input_catalogue.case import EVALUATE, PPO, REWARD, SFT, changed, writes
from bad_input_catalogue.fixtures import edit_json, write_rows

from canary_catalogue.canary import FIRES, SECRET, Act, Canary
from canary_catalogue.controls import instantiates, loads_yaml, reads, renders, runs

TAG = "a: !!python/object/apply:exec [\"open('FIRED','w')\"]\n"
FIRING = {"_target_": "pathlib.Path.touch", "_args_": [{"_target_": "pathlib.Path", "_args_": ["FIRED"]}]}
MESSAGES = [{"role": "user", "content": "how"}, {"role": "assistant", "content": " you can"}]


def template(text: str, where: str = "model/chat_template.jinja") -> Act:
    """Return an action that writes rows of messages, and a tokenizer with an attacker's chat template."""

    def plant(folder: Path) -> None:
        if where.endswith(".jinja"):
            writes(where, text)(folder)
        else:
            edit_json(where, chat_template=text)(folder)
        write_rows(folder / "rows.jsonl", [{"messages": MESSAGES}] * 4)
        pairs = {"chosen": MESSAGES, "rejected": [MESSAGES[0], {"role": "assistant", "content": " no"}]}
        write_rows(folder / "pairs.jsonl", [pairs] * 4)
        write_rows(folder / "prompts.jsonl", [{"prompt": MESSAGES[:1]}] * 4)

    return plant


def appended(name: str, line: str) -> Act:
    """Return an action that appends a line to a file."""
    return lambda folder: (folder / name).write_text((folder / name).read_text() + line)


def resolves(folder: Path) -> None:
    """Give a row to OmegaConf."""
    from omegaconf import OmegaConf

    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    print(OmegaConf.to_container(OmegaConf.create(rows), resolve=True))


def in_environment(folder: Path) -> None:
    """Set an environment variable that a row asks for."""
    import os

    os.environ["CANARY_WORD"] = SECRET
    write_rows(folder / "rows.jsonl", [{"prompt": "${oc.env:CANARY_WORD}", "completion": "b"}] * 8)


PROGRAMS = [
    Canary(
        "a dataset's script",
        "train",
        changed(SFT, "data.train=rows"),
        lambda folder: [
            writes("rows/rows.py", FIRES)(folder),
            write_rows(folder / "rows/train.jsonl", [{"prompt": "a", "completion": "b"}]),
        ],
        control=runs("rows/rows.py"),
    ),
    Canary(
        "YAML tag in a config",
        "train",
        ["--config-dir", "conf", "experiment=mine"],
        writes("conf/experiment/mine.yaml", TAG),
        control=loads_yaml("conf/experiment/mine.yaml"),
        fast=True,
    ),
    *(
        Canary(
            f"YAML tag in a run's config, {command}",
            command,
            words,
            appended("run/config.yaml", TAG),
            control=loads_yaml("run/config.yaml"),
        )
        for command, words in (
            ("export", ["run=run", "to=out"]),
            ("track", ["run=run", "tracking_uri=sqlite:///x.db"]),
            ("evaluate", [*EVALUATE, "run_dir=e"]),
            ("train", [*SFT, "ckpt=last", "run_dir=run"]),
        )
    ),
    *(
        Canary(
            f"_target_ in a run's config, {command}",
            command,
            words,
            appended("run/config.yaml", f"prepare: {json.dumps(FIRING)}\nbomb: {json.dumps(FIRING)}\n"),
            control=instantiates(FIRING),
        )
        for command, words in (
            ("export", ["run=run", "to=out"]),
            ("track", ["run=run", "tracking_uri=sqlite:///x.db"]),
            ("evaluate", [*EVALUATE, "run_dir=e"]),
            ("train", [*SFT, "ckpt=last", "run_dir=run"]),
        )
    ),
    *(
        Canary(f"_target_ in {name}", "train", words, edit_json(name, **FIRING), control=instantiates(FIRING))
        for name, words in (
            ("model/config.json", SFT),
            ("model/generation_config.json", SFT),
            ("model/tokenizer_config.json", SFT),
            ("adapter/adapter_config.json", changed(SFT, "model.path=adapter")),
        )
    ),
    Canary(
        "_target_ in a row",
        "train",
        SFT,
        lambda folder: write_rows(folder / "rows.jsonl", [{"prompt": "a", "completion": "b", **FIRING}] * 8),
        control=instantiates(FIRING),
    ),
    Canary(
        "interpolation in a row",
        "train",
        [*SFT, "run_dir=new"],
        in_environment,
        raw=SECRET,
        files=("new/*",),
        control=reads(resolves),
    ),
]

REACHES = {
    "reaches Python": "{{ ''.__class__.__mro__[1].__subclasses__()[0] }}"
    "{{ cycler.__init__.__globals__.os.system('touch FIRED') }}",
    "imports": "{{ cycler.__init__.__globals__.os.system('touch FIRED') }}",
    "imports through attr": "{{ (cycler|attr('__init__')|attr('__globals__'))['os'].system('touch FIRED') }}",
    "imports through a function": "{{ lipsum.__globals__['os'].popen('touch FIRED').read() }}",
    "imports through format": "{{ lipsum.__globals__.__builtins__.exec(\"open('FIRED','w')\") }}",
}
TALK = {"chat": ["model=model", "max_new_tokens=2"], "train": SFT}
REACHING = [
    Canary(
        f"template that {name}, {command}",
        command,
        TALK[command],
        template(text),
        typed=b"how\n",
        control=renders(text),
        fast=(name, command) == ("imports", "train"),
    )
    for name, text in REACHES.items()
    for command in TALK
] + [
    Canary(
        "template that reads a file",
        "train",
        SFT,
        template("{% include '/etc/passwd' %}"),
        raw="root:",
        control=renders("{% include '/etc/passwd' %}"),
    ),
]

REST = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
ENDLESS = {
    "counts to a billion": "{% for i in range(1000000000) %}{% endfor %}",
    "counts in loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "doubles a text": "{% set n = namespace(s='x') %}{% for i in range(64) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "repeats a text": "{{ 'x' * 99999999999 }}",
    "pads a text": "{{ '%099999999999d' % 1 }}",
    "centres a text": "{{ 'x'|center(99999999999) }}",
    "indents a text": "{{ ('a\\n' * 9999)|indent(99999999) }}",
    "joins a range": "{{ range(99999999)|join('xxxxxxxxxxxxxxxx') }}",
    "lists a range": "{{ range(99999)|map('string')|list|length }}"
    "{% for i in range(99999) %}{{ range(99999)|list|length }}{% endfor %}",
    "calls itself": "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "raises to a power": "{{ 9 ** (9 ** 9) }}",
    "sorts without end": "{% for i in range(99999) %}{{ range(99999)|sort|length }}{% endfor %}",
    "formats a width": "{{ '{:>99999999999}'.format('x') }}",
    "justifies a text": "{{ 'x'.ljust(99999999999) }}",
    "replaces in a text": "{{ ('a' * 9999999)|replace('a', 'b' * 9999)|length }}",
}
WHERE = {"jinja": "model/chat_template.jinja", "json": "model/tokenizer_config.json"}
ALL_COMMANDS = {
    "sft": ("train", SFT),
    "reward": ("train", REWARD),
    "ppo": ("train", PPO),
    "chat": ("chat", TALK["chat"]),
    "evaluate": ("evaluate", EVALUATE),
    "assistant": ("train", [*SFT, "data.loss_on=assistant"]),
}


def endless(name: str, command: str, where: str = "jinja") -> Canary:
    """Return a canary with an endless template: the command must end in good time."""
    text = ENDLESS[name]
    if command == "assistant":
        text = "{% generation %}a{% endgeneration %}" + text
    return Canary(
        f"template that {name}, {command}, {where}",
        *ALL_COMMANDS[command],
        template(text + REST, WHERE[where]),
        typed=b"how\n",
        seconds=30,
        control=without_end(ENDLESS[name] + REST),
    )


def without_end(text: str) -> Act:
    """Return Jinja running on; using more than some memory, or some seconds, counts as firing."""

    def render(folder: Path) -> None:
        import os
        import resource
        import signal

        from jinja2 import Environment

        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        (folder / "FIRED").touch()  # unless it ends
        signal.alarm(8)
        resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30))
        try:
            Environment(extensions=["jinja2.ext.do"]).from_string(text).render(messages=MESSAGES)
        except (MemoryError, RecursionError):
            os._exit(0)
        except Exception as error:
            print(error)
        (folder / "FIRED").unlink()

    return reads(render)


ENDING = [
    *(endless(name, "sft") for name in ENDLESS),
    *(endless("counts to a billion", command) for command in ALL_COMMANDS if command != "sft"),
    *(endless("repeats a text", command) for command in ALL_COMMANDS if command != "sft"),
    endless("counts to a billion", "sft", "json"),
    endless("counts to a billion", "chat", "json"),
]
TEMPLATES = [*REACHING, *ENDING]
