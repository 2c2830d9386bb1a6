"""Rounds: a pipeline's stages that are written once, under `round`, expanded into the stages of each round."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlhf_lightning.errors import UserError

POLICY = "policy"  # as `model_from`: the earlier stage that trained a policy last
FROM = ("model_from", "reward_from", "data_from")

MOST_ROUNDS = 100  # all their stages are composed and checked before the first one runs
Stages = dict[str, dict[str, Any]]


def with_rounds(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a pipeline with the stages of all its rounds among its `stages`.

    Stage `ppo` of round 2 is stage `ppo_2`, and begins from stages of the same round. Settings of `stages.ppo_2` itself
    override those of `round.ppo`. `evaluation.proxy` may name a stage of a round, which means the last round's.

    Raises:
        UserError: there are rounds without stages, stages without rounds, or two stages of one name.
    """
    rounds, each = number_of_rounds(config), config.get("round") or {}
    if not rounds:
        return dict(config)
    if taken := [name for name in each if name in config["stages"]]:
        raise UserError(f"round.{taken[0]}: stages.{taken[0]} has this name already; choose another one")
    own, evaluation = config["stages"], dict(config["evaluation"])
    of_rounds = {name: dict(each[base]) for base, _, name in stages_of_rounds(config)}
    stages: Stages = {name: stage for name, stage in own.items() if name not in of_rounds}
    for base, number, name in stages_of_rounds(config):
        stage = _merged(each[base], own.get(name, {}))
        for key in FROM:
            if stage.get(key) in each and stage[key] == each[base].get(key):
                stage[key] = f"{stage[key]}_{number}"
        stages[name] = stage
    for key in ("baseline", "reference", "proxy"):
        if evaluation.get(key) in each:
            evaluation[key] = f"{evaluation[key]}_{rounds}"
    return {**config, "stages": stages, "evaluation": evaluation}


def number_of_rounds(config: Mapping[str, Any]) -> int:
    """Return how many rounds there are; 0 for what is not a number of rounds, which the schema reports.

    Raises:
        UserError: there are more than `MOST_ROUNDS`, or rounds without stages, or stages without rounds.
    """
    rounds, each = config.get("rounds", 0), config.get("round")
    if not isinstance(rounds, int) or isinstance(rounds, bool) or rounds < 0:
        return 0
    if rounds > MOST_ROUNDS:
        raise UserError(f"rounds: found {rounds}; must be at most {MOST_ROUNDS}")
    if bool(rounds) != bool(each):
        what = "there is no stage under round" if rounds else "the stages under round would never run"
        raise UserError(f"rounds: found {rounds}, but {what}; choose a pipeline with rounds, or rounds=1 or more")
    return rounds


def stages_of_rounds(config: Mapping[str, Any]) -> Iterator[tuple[str, int, str]]:
    """Yield the name under `round`, the round and the stage's name of every stage of every round, in order.

    >>> list(stages_of_rounds({"rounds": 2, "round": {"collect": {}}}))
    [('collect', 1, 'collect_1'), ('collect', 2, 'collect_2')]
    """
    for number in range(1, number_of_rounds(config) + 1):
        yield from ((base, number, f"{base}_{number}") for base in config.get("round") or {})


def with_policy(name: str, stage: Mapping[str, Any], policies: Sequence[str]) -> Mapping[str, Any]:
    """Return a stage in which `model_from: policy` is replaced by the policy that was trained last.

    Raises:
        UserError: no earlier stage trains a policy.
    """
    if stage.get("model_from") != POLICY:
        return stage
    if not policies:
        raise UserError(f"stages.{name}.model_from: found policy, but no stage before it trains one")
    return {**stage, "model_from": policies[-1]}


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return both sections merged recursively; `above` wins."""
    merged = dict(below)
    for key, value in above.items():
        former = merged.get(key)
        merged[key] = _merged(former, value) if isinstance(former, Mapping) and isinstance(value, Mapping) else value
    return merged
