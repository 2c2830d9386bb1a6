"""Shell completion: what may follow on a command line, and the script that asks for it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from rlhf_lightning.durable import write_text_durably
from rlhf_lightning.errors import writing
from rlhf_lightning.guide.composed import Composed, groups, options
from rlhf_lightning.guide.listing import kinds
from rlhf_lightning.guide.pages import PAGES
from rlhf_lightning.value_checks import literals, shown

OPTIONS = ("--help", "--list", "--config-dir", "--cfg", "--multirun", "--install-completion")

# bash splits words at `=` and `:`: what is before the last of them on the word is taken off what is offered.
_SCRIPT = """# Completion of rlhf-lightning's commands; written by `rlhf-train --install-completion`.
_rlhf_lightning() {{
    local line="${{COMP_LINE:0:COMP_POINT}}" word current IFS=$'\\n'
    word="${{line##* }}" current="${{COMP_WORDS[COMP_CWORD]}}"
    [[ "$current" == "=" || "$current" == ":" ]] && current=""
    COMPREPLY=($("${{COMP_WORDS[0]}}" --complete "$line" 2>/dev/null))
    COMPREPLY=("${{COMPREPLY[@]#"${{word%"$current"}}"}}")
    [[ "${{COMPREPLY[0]}}" == *[=.] ]] && compopt -o nospace 2>/dev/null
}}
complete -o default -F _rlhf_lightning {commands}
"""


def script() -> str:
    """Return the text that bash reads to complete the commands."""
    return _SCRIPT.format(commands=" ".join(["rlhf", *PAGES]))


def install(home: Path) -> str:
    """Write the script, have bash read it when it starts, and say what was done.

    Args:
        home: the user's home folder.

    Raises:
        DiskError: a file cannot be written.
    """
    file, startup = home / ".local/share/rlhf-lightning/completion.bash", home / ".bashrc"
    line = f'[ -f "{file}" ] && source "{file}"'
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text_durably(file, script())
    with writing(startup):
        text = startup.read_text(encoding="utf-8") if startup.is_file() else ""
        if line not in text:
            with startup.open("a", encoding="utf-8") as rest:
                rest.write(f"{'' if not text or text.endswith(chr(10)) else chr(10)}{line}\n")
    return f"completion for bash is in {file}, which {startup} reads; in this shell: source {shlex.quote(str(file))}"


def candidates(command: str, words: Sequence[str], compose: Callable[[Sequence[str]], Composed]) -> list[str]:
    """Return what the last word of a command line may become.

    Args:
        command: without `rlhf-`.
        words: those after the command's name; the last one is being written, and may be empty.
        compose: the command's config with overrides.
    """
    *before, word = words
    folder = next((after for each, after in zip(before, words[1:], strict=False) if each == "--config-dir"), None)
    if before and before[-1] == "--list":
        return _starting_with(word, kinds(folder))
    if word.startswith("-"):
        return _starting_with(word, OPTIONS)
    name, equals, _ = word.partition("=")
    if equals and name.lstrip("+") in groups(command, folder):
        return _starting_with(word, [f"{name}={option}" for option in options(name.lstrip("+"), folder)])
    composed = compose([each for each in before if "=" in each and not each.startswith("-")])
    if equals:
        key = composed.keys.get(name.lstrip("+"))
        return _starting_with(word, [f"{name}={value}" for value in values_of(key.kind)]) if key is not None else []
    names = [f"{group}=" for group in groups(command, folder)] + [f"{key}=" for key in composed.keys]
    return _up_to_dot(word, _starting_with(word, names))


def values_of(kind: Any) -> list[str]:
    """Return the values that a type names one by one: choices, true and false, null."""
    parts = list(_parts(kind))
    found = [str(each) for each in literals(kind)]
    found += ["true", "false"] if bool in parts else []
    found += [shown(None)] if type(None) in parts else []
    return found


def _parts(kind: Any) -> list[Any]:
    inner = [part for each in get_args(kind) for part in _parts(each)] if get_origin(kind) is not None else []
    return [kind, *inner]


def _starting_with(word: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(word)]


def _up_to_dot(word: str, names: Sequence[str]) -> list[str]:
    """Return the keys of one level at a time: `algorithm.` before `algorithm.kl.coef=`."""
    cut: dict[str, None] = {}
    for name in names:
        dot = name.find(".", len(word))
        cut[name if dot < 0 else name[: dot + 1]] = None
    return list(cut)
