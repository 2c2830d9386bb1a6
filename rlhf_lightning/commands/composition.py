"""Composing configs with Hydra, and turning Hydra's own errors into one line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlhf_lightning.commands.redaction import remember_secrets
from rlhf_lightning.compat.hydra_names import jobs_of_sweep, without_hydra
from rlhf_lightning.config.config_files import check_aliases, conf_dir
from rlhf_lightning.config.own_names import may_be_added
from rlhf_lightning.config.schema import TOP_LEVELS
from rlhf_lightning.config.spelling import did_you_mean, dotted_keys, nearest, nearest_key
from rlhf_lightning.errors import UserError, reason

MOST_DIGITS = 4300  # Python's limit for reading an integer
HYDRA_VERSION = "1.3"  # whose defaults apply
_NO_SUCH_KEY = re.compile(r"Could not (?:override|delete from config\.)(?: Key)? '([^']+)'")
COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException)


def config_folder(config_name: str) -> Path:
    """Return the folder of a command's config: `conf/`, or its own if one of its keys has the name of a group."""
    own = conf_dir() / config_name
    return own if (own / f"{config_name}.yaml").is_file() else conf_dir()


@contextmanager
def _hydra(config_name: str) -> Iterator[None]:
    """Run Hydra on the project's configs; an already running Hydra (a sweep) is restored afterwards."""
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_folder(config_name)), version_base=HYDRA_VERSION):
            yield
    finally:
        GlobalHydra.instance().hydra = running


def compose_config(config_name: str, overrides: Sequence[str], config_dir: str | None = None) -> dict[str, Any]:
    """Return the composed config as plain containers, interpolations resolved; missing values stay `"???"`.

    Args:
        config_name: `train`, `pipeline`, `evaluate`, `export` or `chat`.
        overrides: as on the command line.
        config_dir: a folder with the user's own configs, searched after the project's.

    Raises:
        UserError: one line about what cannot be composed.
    """
    return compose_with_hydra(config_name, overrides, config_dir)[0]


def compose_with_launcher(
    config_name: str, overrides: Sequence[str], config_dir: str | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the same as `compose_config`, and Hydra's section `hydra.launcher`, which says what would run a sweep."""
    config, hydra = compose_with_hydra(config_name, overrides, config_dir)
    return config, hydra["launcher"]


def compose_with_hydra(
    config_name: str, overrides: Sequence[str], config_dir: str | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the same as `compose_config`, and from Hydra's node `launcher` and `choices`: the option of each group."""
    if config_dir is not None:
        if not Path(config_dir).is_dir():
            raise UserError(f"--config-dir: {config_dir} is not a folder")
        check_aliases(Path(config_dir))
        overrides = [*overrides, *_search(config_dir)]
    with _hydra(config_name):
        try:
            config = _compose(config_name, list(overrides))
            launcher: Any = OmegaConf.to_container(config.hydra.launcher, resolve=True)
            choices = dict(config.hydra.runtime.choices)
            return plain_config(config, choices), {"launcher": launcher, "choices": choices}
        except COMPOSITION_ERRORS as error:
            raise UserError(composition_error(error, config_name, overrides)) from error
        except UserError:
            raise
        except (yaml.YAMLError, UnicodeDecodeError, OSError, RecursionError) as error:
            raise UserError(unreadable_config(error, config_dir)) from error
        except (ValueError, TypeError, AttributeError, KeyError, AssertionError) as error:  # raised by Hydra
            if "integer string conversion" in str(error):
                raise UserError(_too_many_digits(overrides, config_dir)) from error
            raise UserError(_unexplained(error, overrides, config_dir)) from error


def _compose(config_name: str, overrides: list[str]) -> DictConfig:
    """Return Hydra's config, with names of the user's own added where a key does not exist."""
    try:
        return compose(config_name, overrides, return_hydra_config=True)
    except ConfigCompositionException as error:
        if (found := _NO_SUCH_KEY.search(str(error))) is None:
            raise
        if twice := _given_twice(found[1], overrides):
            raise UserError(twice) from error
        groups, config = _groups_and_config(config_name, overrides)
        more = _with_own_names(config_name, overrides, config)
        if more == overrides:
            raise UserError(_unknown_key(found[1], groups, config)) from error
    return compose(config_name, more, return_hydra_config=True)


def with_own_names(config_name: str, overrides: Sequence[str], config_dir: str | None = None) -> list[str]:
    """Return the overrides as Hydra takes them: names of the user's own with pluses (`++reward.arguments.x=1`)."""
    search = _search(config_dir) if config_dir is not None else []
    with _hydra(config_name):
        _, config = _groups_and_config(config_name, [*overrides, *search])
        return _with_own_names(config_name, overrides, config)


def _search(config_dir: str) -> list[str]:
    return [f"hydra.searchpath=['file://{Path(config_dir).resolve()}']"]


def _with_own_names(config_name: str, overrides: Sequence[str], config: DictConfig) -> list[str]:
    plain: Any = OmegaConf.to_container(config, resolve=False)
    top = TOP_LEVELS[config_name]

    return [f"++{word}" if may_be_added(word.partition("=")[0], plain, top) else word for word in overrides]


def _too_many_digits(overrides: Sequence[str], config_dir: str | None) -> str:
    """Return where an integer has more than the 4,300 digits that Python reads."""
    longest = max(overrides, key=lambda word: sum(character.isdigit() for character in word), default="")
    digits = sum(character.isdigit() for character in longest)
    where = longest.partition("=")[0].lstrip("+~") if digits > MOST_DIGITS else f"--config-dir: {config_dir}"
    return f"{where}: a whole number of thousands of digits; must have at most 19"


def _unexplained(error: Exception, overrides: Sequence[str], config_dir: str | None) -> str:
    """Explain what cannot be composed where Hydra fails without naming it: a group whose value is not an option."""
    groups, _ = _groups_and_choices(overrides)
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        group = override.key_or_group
        if group in groups and not override.is_delete() and not isinstance(override.value(), str):
            return f"{override.input_line}: not an option; allowed: {group}={' | '.join(groups[group])}"
        if not group:
            return f"{override.input_line}: there is no key before the equals sign"
    where = f"--config-dir: {config_dir}" if config_dir else f"the config with {' '.join(overrides)}"
    return f"{where}: cannot be composed: {reason(error)}"


def unreadable_config(error: Exception, config_dir: str | None) -> str:
    """Return what is wrong with an unreadable config file: the file, the line, and the reason."""
    where = f"--config-dir: {config_dir}" if config_dir else "config"
    if isinstance(error, yaml.MarkedYAMLError) and (mark := error.problem_mark or error.context_mark):
        name = mark.name.strip('"') if mark.name and not mark.name.startswith("<") else where
        return f"{name}, line {mark.line + 1}: {error.problem or error.context}"
    if isinstance(error, UnicodeDecodeError):
        files = sorted(Path(config_dir).rglob("*.yaml")) if config_dir else []
        broken = [file for file in files if not _is_utf8(file)]
        return f"{broken[0] if broken else where}: it is not UTF-8 ({reason(error)}); save it as UTF-8"
    return f"{where}: a config file cannot be read: {reason(error)}"


def _is_utf8(file: Path) -> bool:
    try:
        file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    except OSError:
        return True
    return True


def split_sweep(config_name: str, overrides: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Return the overrides that all jobs of a sweep share, and those of each job, as Hydra's sweeper computes them."""
    with _hydra(config_name):
        parsed = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(list(overrides))
        shared = [override.input_line or "" for override in parsed if not override.is_sweep_override()]
        jobs = jobs_of_sweep(parsed)
    return shared, jobs


def plain_config(config: DictConfig, choices: Mapping[str, Any]) -> dict[str, Any]:
    """Return a composed config, resolved and without Hydra's node; its name defaults to the experiment or pipeline."""
    container = without_hydra(config)
    remember_secrets(container)
    plain: dict[str, Any] = OmegaConf.to_container(container, resolve=True)  # type: ignore[assignment]
    if "name" in plain and plain["name"] is None:
        chosen = choices.get("experiment") or choices.get("pipeline")
        plain["name"] = str(chosen) if chosen else "train"
    return plain


def composition_error(error: Exception, config_name: str, overrides: Sequence[str]) -> str:
    """Return one line for what Hydra or OmegaConf reports in several: the key, the problem, the nearest match."""
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read as key=value ({_first_line(error)})"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file is not None:
        return _missing_option(error)
    if found := re.search(r"trying to access (\S+): node `([^`]+)` is not a container", str(error)):
        return f"{found[2]}: found no section, but other settings need {found[1]}; give {found[1]}=..."
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return f"{error.full_key}: {_first_line(error)}"
    text = str(error)
    if isinstance(error, ConfigCompositionException):
        if found := _NO_SUCH_KEY.search(text):
            if twice := _given_twice(found[1], overrides):
                return twice
            with _hydra(config_name):
                return _unknown_key(found[1], *_groups_and_config(config_name, overrides))
        if found := re.search(r"An item is already at '([^']+)'", text):
            return f"{found[1]}: exists already; set it without the plus: {found[1]}=..."
        if error.__cause__ is not None:
            return f"{_first_line(error)}: {_first_line(error.__cause__)}"
    return _first_line(error)


def _given_twice(key: str, overrides: Sequence[str]) -> str | None:
    """Return the line about a key to which Hydra could add nothing, for an earlier word has set it."""
    if [word.partition("=")[0].lstrip("+") for word in overrides].count(key) < 2:
        return None
    return f"{key}: given twice; give all that it has at once: {key}={{...}}"


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].strip()


def _missing_option(error: MissingConfigException) -> str:
    group, _, option = str(error.missing_cfg_file).rpartition("/")
    options = list(error.options or [])
    if not group:
        return f"{option}: no such config"
    match = nearest(option, options)
    suggestion = did_you_mean(match and f"{group}={match}")
    return f"{group}={option}: no such option{suggestion}; allowed: {', '.join(options)}"


def _unknown_key(key: str, groups: Mapping[str, list[str]], config: DictConfig) -> str:
    section = key.partition(".")[0]
    if section != key and section in groups and config.get(section) is None:
        return f"{key}: the section {section} is empty; choose it with {section}={' | '.join(groups[section])}"
    known = dotted_keys(OmegaConf.to_container(config, resolve=False))  # type: ignore[arg-type]
    if key in known:
        return f"{key}: takes no such value; --help says what it takes"
    match = nearest_key(key, [*known, *groups])
    if match:
        return f"{key}: no such key{did_you_mean(match)}"
    parent = key.rpartition(".")[0]
    siblings = [other for other in known if other.rpartition(".")[0] == parent]
    return f"{key}: no such key; allowed: {', '.join(siblings)}" if siblings else f"{key}: no such key"


def _groups_and_config(config_name: str, overrides: Sequence[str]) -> tuple[dict[str, list[str]], DictConfig]:
    """Return all config groups with their options, and the config that the chosen ones give."""
    groups: dict[str, list[str]] = {}
    try:
        groups, chosen = _groups_and_choices(overrides)
        return groups, compose(config_name, [override.input_line or "" for override in chosen])
    except COMPOSITION_ERRORS:
        return groups, compose(config_name)


def _groups_and_choices(overrides: Sequence[str]) -> tuple[dict[str, list[str]], list[Override]]:
    """Return all config groups with their options, and the overrides that choose one (no sweeps, no deletions)."""
    loader = GlobalHydra.instance().config_loader()
    names = [group for group in loader.list_groups("") if not group.startswith("hydra")]
    groups = {name: loader.get_group_options(name, ObjectType.CONFIG) for name in names}
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    chosen = [
        override
        for override in parsed
        if override.key_or_group in groups and not override.is_sweep_override() and not override.is_delete()
    ]
    searched = [override for override in parsed if override.key_or_group == "hydra.searchpath"]
    return groups, [*chosen, *searched]
