"""`--list experiments`: what can be chosen, with a line about each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from rlhf_lightning.errors import UserError
from rlhf_lightning.guide.composed import groups, options
from rlhf_lightning.guide.explanations import content, header, option_file, summary
from rlhf_lightning.guide.pages import PAGES, table
from rlhf_lightning.source.declarations import declared
from rlhf_lightning.source.definitions import definition, public_names
from rlhf_lightning.value_checks import did_you_mean, nearest
from rlhf_lightning.working_folder import import_from_working_folder


def listing(name: str, config_dir: str | None = None) -> str:
    """Return all names of a kind, one per line with a description; without a name, the kinds.

    Raises:
        UserError: there is no list of that name.
    """
    known = kinds(config_dir)
    if not name:
        return "\n".join(table({kind: _about(kind, config_dir) for kind in known}))
    kind = _meant(name, known)
    if kind is None:
        match = did_you_mean(nearest(name, known))
        raise UserError(f"--list: nothing is called {name}{match}; can be listed: {', '.join(known)}")
    return known[kind]()


def kinds(config_dir: str | None = None) -> dict[str, Callable[[], str]]:
    """Return what can be listed, and what returns each list."""
    found: dict[str, Callable[[], str]] = {}
    for group in dict.fromkeys([*groups("train", config_dir), *groups("pipeline", config_dir)]):
        found[_plural(group)] = lambda group=group: _options(group, config_dir)  # type: ignore[misc]
    found["commands"] = lambda: "\n".join(table({name: page.about for name, page in PAGES.items()}))
    return {kind: found[kind] for kind in sorted(found)}


def _plural(group: str) -> str:
    name = group.rpartition("/")[2]
    return name if name.endswith("s") or name in ("data", "quantization") else f"{name}s"


def _meant(name: str, known: Iterable[str]) -> str | None:
    """Return the kind that a name stands for: experiments, experiment, model/adapter, ..."""
    wanted = name.strip("= ").lower()
    return next((kind for kind in known if wanted in (kind, kind.removesuffix("s")) or _plural(wanted) == kind), None)


def _about(kind: str, config_dir: str | None) -> str:
    if kind == "commands":
        return f"{', '.join(PAGES)}"
    group = next(group for group in _all_groups(config_dir) if _plural(group) == kind)
    return f"{group}={' | '.join(options(group, config_dir))}"


def _all_groups(config_dir: str | None) -> list[str]:
    return list(dict.fromkeys([*groups("train", config_dir), *groups("pipeline", config_dir)]))


def _options(group_of: str, config_dir: str | None) -> str:
    rows = {option: option_text(group_of, option, config_dir) for option in options(group_of, config_dir)}
    lines = [f"{group_of}=<option>", *table(rows)]
    if group_of == "callbacks":
        lines += [
            "",
            "more callbacks: ++callbacks.<name>._target_=rlhf_lightning.callbacks.<class>",
            *table(_callbacks()),
        ]
    return "\n".join(lines)


def _callbacks() -> dict[str, str]:
    """Return the callbacks of this package, each with the first sentence about it."""
    found = {}
    for path in public_names():
        where = definition(path) if path.startswith("rlhf_lightning.callbacks.") else None
        above = where.lineage() if where is not None else ()
        if where is not None and any(each and each.path.startswith("lightning.pytorch.callbacks.") for each in above):
            found[where.name] = summary(where)
    return found


def option_text(group: str, option: str, config_dir: str | None = None) -> str:
    """Return what an option is, in a line: its file's comment, or what the class of an algorithm calls itself."""
    file = option_file(group, option, config_dir)
    return "" if file is None else header(file) or _title(file)


def _title(file: Path) -> str:
    import_from_working_folder()
    target = str(content(file).get("_target_", ""))
    found = definition(target) if target else None
    return (declared(target).title if target else "") or (summary(found) if found is not None else "") or target
