"""rlhf-plan: the memory that a training config needs on each device, without loading any weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_lightning.commands.command_line import is_plain, read_arguments, run_command
from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.commands.guidance import answer
from rlhf_lightning.commands.stages import compose_stages
from rlhf_lightning.commands.train import check
from rlhf_lightning.config.schema import Pipeline
from rlhf_lightning.config.source_lookup import reward_models
from rlhf_lightning.config.stage_overrides import split_overrides
from rlhf_lightning.config.validation import MISSING, validate
from rlhf_lightning.errors import UserError, blaming
from rlhf_lightning.runs.rounds import with_rounds
from rlhf_lightning.source.declarations import declaration

DEVICE = "device_gb"
DEFAULT_DEVICE_GB = 80.0
MOST_TOKENS = 10_000_000  # in one forward pass: more take minutes to follow, and fit no device


def main() -> None:
    """Run rlhf-plan."""
    run_command(_main)


def _main() -> None:
    arguments = read_arguments("rlhf-plan")
    if (said := answer("rlhf-plan", arguments)) is not None:
        print(said)
        return
    if not is_plain(arguments):
        raise UserError("rlhf-plan takes overrides, --config-dir and --help only")
    device_gb, overrides = split_device(arguments.overrides)
    for config, starts_from_adapter in configs(overrides, arguments.config_dir):
        print(plan(config, device_gb, starts_from_adapter), end="\n\n")


def split_device(overrides: Sequence[str]) -> tuple[float, list[str]]:
    """Return the size of the device in GiB, and the overrides of the config.

    Raises:
        UserError: the size is not a number above 0.

    >>> split_device(["experiment=sft", "device_gb=24"])
    (24.0, ['experiment=sft'])
    """
    size, rest = DEFAULT_DEVICE_GB, []
    for override in overrides:
        key, _, value = override.partition("=")
        if key != DEVICE:
            rest.append(override)
            continue
        try:
            size = float(value)
        except ValueError:
            size = 0.0
        if not 0 < size < float("inf"):
            raise UserError(f'{DEVICE}: found "{value}"; must be a number > 0, the GiB of one device')
    return size, rest


def configs(overrides: Sequence[str], config_dir: str | None = None) -> Iterator[tuple[dict[str, Any], bool]]:
    """Yield the checked training configs to plan; with `pipeline=...`, those of all stages.

    Yields:
        a config, and whether an earlier stage will leave an adapter as its model.

    Raises:
        UserError: one line about the first problem.
    """
    if not any(override.startswith("pipeline=") for override in overrides):
        config = compose_config("train", overrides, config_dir)
        _ignore_rows(config)
        check(config)
        yield config, False
        return
    own, of_stages = split_overrides(overrides)
    pipeline = with_rounds(compose_config("pipeline", own, config_dir))
    validate({**pipeline, "round": {}}, Pipeline)
    started: dict[str, dict[str, Any]] = {}
    for stage in compose_stages(pipeline, Path(str(pipeline.get("run_dir"))), of_stages, config_dir):
        if not stage.trains:
            continue
        config = stage.config
        earlier = started.get(str(stage.model_from))
        if earlier is not None:
            config["model"]["path"] = earlier["model"]["path"]  # the run folder it will start from does not exist yet
        _ignore_rows(config)
        check(config, f"stages.{stage.name}.")
        started[stage.name] = config
        yield config, earlier is not None and bool(earlier["model"].get("adapter"))


def _ignore_rows(config: dict[str, Any]) -> None:
    """Remove the data paths, which are not read and so need not be given."""
    if isinstance(config["data"], dict) and config["data"].get("train") == MISSING:
        config["data"]["train"] = "not read"


def assumptions(config: Mapping[str, Any], run: Any) -> list[str]:
    """Return what is assumed of networks that the config does not name or that do not exist here, and of long rows."""
    found = [(key, path) for key, path in reward_models(config) if not Path(path).expanduser().exists()]
    lines = [f"{key} is like the policy, for {path} is not here" for key, path in found]
    if "teacher" in declaration(config).roles and config["algorithm"].get("teacher") is None:
        lines.append("algorithm.teacher is like the policy, for none is given")
    limit = getattr(run.policy.text, "max_position_embeddings", None)
    if isinstance(limit, int) and 0 < limit < run.rows.length:
        lines.append(
            f"rows have {run.rows.length} tokens; the model has {limit} positions, and training refuses longer ones"
        )
    return lines


def _check_sizes(run: Any) -> None:
    """Raise UserError for more rows at a time than any device holds."""
    scorers = [each.rows for each in (run.reward_model, run.cost_model) if each is not None]
    rows = max([run.rows.count, *scorers])
    if rows * run.rows.length > MOST_TOKENS:
        sizes = "algorithm.tokens_per_microbatch and reward.batch_size" if run.rollout else "data.batch_size"
        raise UserError(
            f"{sizes}: {rows} rows of {run.rows.length} tokens at a time, which fit no device; rlhf-plan follows at "
            f"most {MOST_TOKENS} tokens"
        )


def plan(config: Mapping[str, Any], device_gb: float = DEFAULT_DEVICE_GB, starts_from_adapter: bool = False) -> str:
    """Return the plan of a checked training config as text, with changes that help if it does not fit."""
    from rlhf_lightning.commands.planned_run import planned_run
    from rlhf_lightning.planning import advice_table, advise, make_plan, plan_table, room

    with blaming(f"model.path: no network can be built from the configuration of {config['model']['path']}"):
        run = planned_run(config, starts_from_adapter, int(device_gb * 2**30))
        _check_sizes(run)
        made = make_plan(run)
    text = plan_table(made, device_gb) + "".join(f"\nassumed: {each}" for each in assumptions(config, run))
    if made.peak > room(device_gb):
        text += "\n" + advice_table(*advise(run, room(device_gb)), device_gb)
    return text
