"""The reference of configs: a page per algorithm, group and command, each key with its range, default and meaning."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import yaml

from rlhf_lightning.config.config_files import conf_dir
from rlhf_lightning.config.reference import Setting, groups, option_settings, options
from rlhf_lightning.source.declarations import declared

REPOSITORY = "https://github.com/rlhf-lightning/rlhf-lightning"
WIDE = "---\nhide:\n  - toc\n---\n\n"  # a page whose table needs the room of the table of contents
# Whose classes a group's options are, where their own documentation says more than a line.
LIBRARIES = {
    "optimizer": "[torch.optim](https://pytorch.org/docs/stable/optim.html)",
    "trainer": "[Lightning's Trainer](https://lightning.ai/docs/pytorch/stable/common/trainer.html)",
}
COMPOSED = ("experiment", "pipeline", "labelers")  # groups whose options are values for other groups


def setting_pages() -> dict[str, str]:
    """Return path -> Markdown of every page about config keys."""
    pages = {"reference/config/index.md": _overview()}
    for option in options("algorithm"):
        pages[f"reference/config/algorithm/{option}.md"] = _algorithm_page(option)
    for group in groups():
        if group != "algorithm":
            pages[_path(group)] = _group_page(group)
    for group in COMPOSED:
        pages[_path(group)] = _composed_page(group)
    return pages


def _path(group: str) -> str:
    return f"reference/config/groups/{group.replace('/', '_')}.md"


def key_table(settings: Iterable[Setting], prefix: str = "", mark: str = "") -> str:
    """Return a table of keys as Markdown.

    Args:
        settings: the keys.
        prefix: what is written before each key on the command line, such as `algorithm.`.
        mark: what the anchors of the keys begin with, on a page where a key occurs twice.
    """
    lines = ["| key | allowed | default | meaning |", "|---|---|---|---|"]
    for each in settings:
        key = f"{prefix}{each.key}"
        default = "required" if each.default is None else f"`{each.default}`" if each.default else "–"
        anchor = re.sub(r"[<>]", "", f"{mark}{key}")
        lines.append(f"| `{key}`{{ #{anchor} }} | {in_a_cell(each.allowed)} | {default} | {in_a_cell(each.meaning)} |")
    return "\n".join(['<div class="keys" markdown>', "", *lines, "", "</div>"])


def in_a_cell(text: str) -> str:
    """Return a text as Markdown for a cell of a table; what is in backticks is left as it is."""
    parts = re.split(r"(`[^`]*`)", text)
    plain = str.maketrans({"|": "&#124;", "<": "&lt;", ">": "&gt;", "*": "\\*", "$": "\\$", "[": "\\[", "^": "&#94;"})
    return "".join(part if part.startswith("`") else part.translate(plain) for part in parts)


def _overview() -> str:
    names = {_path(group): group for group in (*groups(), *COMPOSED) if group != "algorithm"}
    algorithms = "\n".join(
        f"- [`algorithm={each}`](algorithm/{each}.md): {_title(each)}" for each in options("algorithm")
    )
    others = "\n".join(f"- [`{name}`](groups/{path.rpartition('/')[2]})" for path, name in sorted(names.items()))
    return f"""# Config keys

Every key of every config, with its type, range and default. The pages are made from what checks the configs: the
annotated constructors, the files in `conf/` and their comments.

A group is chosen with `group=option`, and a key is set by its dotted name, as in
`rlhf-train experiment=ppo algorithm.kl.target=3`. `--cfg job` prints the composed config of a run. A value out of its
range is refused in one line before anything is loaded.

## Algorithms

{algorithms}

## Groups

{others}

The page of [`rlhf-train`](../commands/rlhf-train.md) has the keys at the top of a config, such as `seed` and `run_dir`.
"""


def _target(option: str) -> str:
    content = yaml.safe_load((conf_dir() / "algorithm" / f"{option}.yaml").read_text(encoding="utf-8"))
    return str(content["_target_"])


def _title(option: str) -> str:
    return declared(_target(option)).title


def _algorithm_page(option: str) -> str:
    target = _target(option)
    declaration = declared(target)
    names = ", ".join(f"`{name}`" for name in sorted(declaration.logs))
    title = declaration.title[:1].upper() + declaration.title[1:]
    roles = ", ".join(declaration.roles)
    settings = option_settings("algorithm", option)
    table = key_table(settings, "algorithm.") if settings else "It has no keys of its own."
    return f"""{WIDE}# algorithm={option}

{title}, [`{declaration.name}`](../../python/algorithms.md#{target}), chosen with `algorithm={option}`.
It learns from {_rows(declaration.data)}. Networks: {roles}.

{table}

Metrics of its own: {names}; [what they mean](../../../metrics.md).
"""


def _rows(kind: str | None) -> str:
    words = {
        "sft": "demonstrations",
        "preference": "preference pairs",
        "unpaired": "answers with a label",
        "prompts": "prompts",
        "rewarded": "answers with rewards",
    }
    return words.get(str(kind), f"{kind} rows")


def _group_page(group: str) -> str:
    prefix = group.replace("/", ".") + "."
    parts, seen = [], set[Setting]()
    for option in sorted(options(group), key=lambda name: (name != "default", name == "none", name)):
        settings = option_settings(group, option)
        new = [each for each in settings if each not in seen]
        base = "As `default`, and:\n\n" if len(new) < len(settings) else ""
        table = key_table(new, prefix, f"{option}.") if new and option != "none" else ""
        about = _first_comment(conf_dir() / group / f"{option}.yaml")
        parts.append(f"## {group}={option}\n\n{about}\n\n{base}{table}")
        if option == "default":
            seen |= set(settings)
    library = (
        f"What a key of another library does in detail is said by {LIBRARIES[group]}.\n\n" if group in LIBRARIES else ""
    )
    return f"# {group}\n\n{library}" + "\n\n".join(parts) + "\n"


def _comment_lines(text: str) -> list[str]:
    """The comment lines that a file begins with, commands and packages left out."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return [line for line in lines if not line.startswith(("@package", "rlhf-", "mlflow "))]


def _first_comment(file: Path) -> str:
    return in_a_cell(" ".join(_comment_lines(file.read_text(encoding="utf-8")))).replace("docs/", "").strip()


def _composed_page(group: str) -> str:
    """A page of whole files: they are values for other groups."""
    parts = []
    for option in options(group):
        text = (conf_dir() / group / f"{option}.yaml").read_text(encoding="utf-8")
        command = next((line[2:] for line in text.splitlines() if line.startswith("# rlhf-")), "")
        shown = f"```bash\n{command}\n```\n\n" if command else ""
        body = "\n".join(line for line in text.splitlines() if not line.startswith("#")).strip()
        file = conf_dir() / group / f"{option}.yaml"
        parts.append(f"## {group}={option}\n\n{_first_comment(file)}\n\n{shown}```yaml\n{body}\n```")
    return f"# {group}\n\n" + "\n\n".join(parts) + "\n"
