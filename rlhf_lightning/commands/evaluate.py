"""rlhf-evaluate: compare policies on held-out prompts, and rewards on preferences."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_lightning.commands.command_line import run_hydra_command
from rlhf_lightning.config.best_of_checks import check_best_of
from rlhf_lightning.config.effects import check_samples
from rlhf_lightning.config.evaluation_effects import check_evaluation_effects
from rlhf_lightning.config.harness_tasks import check_tasks, named_tasks
from rlhf_lightning.config.inputs import (
    check_hashes,
    check_ilql_beta,
    check_model,
    check_no_split_of_a_file,
    missing_locally,
    refuse_reward_model,
)
from rlhf_lightning.config.schema import Evaluate
from rlhf_lightning.config.source_lookup import check_function, check_reward_calls
from rlhf_lightning.config.spelling import did_you_mean, nearest
from rlhf_lightning.config.validation import MISSING, validate
from rlhf_lightning.errors import UserError, named_as
from rlhf_lightning.judging.settings import check_judge
from rlhf_lightning.runs.places import check_place
from rlhf_lightning.runs.run_folder import choose_run_dir, read_json_lines, write_config, write_summary
from rlhf_lightning.setting_rules import check_reward
from rlhf_lightning.stopping import held

_OF_POLICIES = ("policies", "prompts", "baseline")


def main() -> None:
    """Run rlhf-evaluate."""
    run_hydra_command("rlhf-evaluate", "evaluate", evaluate)


def check(config: Mapping[str, Any]) -> None:
    """Check everything that can be checked without importing torch."""
    config = _with_policies_or_without(config)
    validate(config, Evaluate)
    check_samples(config)
    check_evaluation_effects(config)
    if (encoder := (config.get("embeddings") or {}).get("model")) is not None:
        check_model("embeddings.model", encoder)
    rows = tuple(name for name in ("prompts", "preferences", "refusals") if config.get(name))
    paths = {f"policies.{name}": path for name, path in (config["policies"] or {}).items()}
    paths |= {name: config[name] for name in rows}
    if config.get("rewards") or config.get("preferences"):
        _check_rewards(config, paths)
    if config.get("harness") is not None:
        check_tasks(config["harness"])
    if config["policies"] is not None:
        _check_policies(config, paths)
    for key, path in paths.items():
        if missing_locally(path):
            raise UserError(f"{key}: {path} does not exist")
        if key not in rows:
            check_hashes(key, path)
    for name, path in (config["policies"] or {}).items():
        refuse_reward_model(f"policies.{name}", path)
    check_ilql_beta(config, config["policies"] or {})
    for key in rows:
        check_no_split_of_a_file(key, paths[key])


def _with_policies_or_without(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config without the policies that it lacks beside rewards, or the prompts beside tasks."""
    lacking = tuple(key for key in _OF_POLICIES if config[key] == MISSING)
    bare = config.get("rewards") and lacking == _OF_POLICIES
    bare = bare or (config.get("harness") is not None and lacking == _OF_POLICIES[1:])
    return {**config, **(dict.fromkeys(lacking) if bare else {})}


def _check_policies(config: Mapping[str, Any], paths: dict[str, str]) -> None:
    policies = config["policies"]
    if not policies:
        raise UserError("policies: none given; give {name: folder, ...}")
    if config["prompts"] is None:
        return
    for key in ("baseline", "reference"):
        name = config.get(key)
        if name is not None and name not in policies:
            match = did_you_mean(nearest(name, policies))
            raise UserError(f'{key}: found "{name}"; must be one of the policies ({", ".join(policies)}){match}')
    for key in ("gold", "proxy"):
        reward = config.get(key) or {}
        if _scores(reward):
            _check_scorer(key, reward, paths)
    _check_judge(config.get("judge") or {}, config.get("refusal_detector") == "judge")
    if config.get("course") is not None:
        _check_curves(config)
    elif (chooser := check_best_of(config)) is not None:
        paths["reward.model"] = chooser
    for name in policies if config.get("best_of") is not None else ():
        if f"{name}_best_of_{config['best_of']}" in policies:
            raise UserError(
                f"policies.{name}_best_of_{config['best_of']}: best_of gives {name} this name; choose another"
            )


def _check_curves(config: Mapping[str, Any]) -> None:
    lacking = [key for key in ("best_of", "course") if config.get(key) is None]
    lacking += [key for key in ("gold", "proxy") if not _scores(config.get(key) or {})]
    if lacking:
        raise UserError(
            f"{lacking[0]}: missing; best-of-n beside training needs best_of, course, gold and proxy (gold is what "
            "callbacks.overoptimization had as its first scorer)"
        )
    if _scores(config.get("reward") or {}):
        raise UserError("reward: beside course, best_of draws the baseline's curves, by proxy; leave one of them out")
    if config.get("temperature") == 0:
        raise UserError("best_of: with temperature=0 all answers to a prompt are the same; raise the temperature")
    if not (Path(config["course"]) / "metrics.jsonl").is_file():
        raise UserError(f"course: {config['course']} has no metrics.jsonl; give the run folder of the training")


def _check_judge(judge: Mapping[str, Any], sees_refusals: bool) -> None:
    settings = {key: value for key, value in judge.items() if key != "function"}
    named = [f"judge.{name}" for name in ("function", "model", "url") if judge.get(name)]
    if judge.get("function") and len(named) > 1:
        raise UserError(f"{' and '.join(named)}: only one judge; set the others to null")
    if sees_refusals and (judge.get("function") or not named):
        why = "judge.function compares two answers" if named else "there is no judge"
        raise UserError(f"refusal_detector: found judge, but {why}; give judge.model, or refusal_detector=rule")
    if judge.get("function"):
        check_function("judge.function", judge["function"])
    elif named:
        check_judge(settings)
        if not judge.get("url"):
            check_model("judge.model", judge["model"])
            refuse_reward_model("judge.model", judge["model"])


def _check_rewards(config: Mapping[str, Any], paths: dict[str, str]) -> None:
    for key, other in (("rewards", "preferences"), ("preferences", "rewards")):
        if not config.get(key):
            raise UserError(f"{key}: none given beside {other}; give {key}=..., or leave {other} out")
    for name, reward in config["rewards"].items():
        _check_scorer(f"rewards.{name}", reward, paths)


def _check_scorer(key: str, reward: Mapping[str, Any], paths: dict[str, str]) -> None:
    check_reward(reward, f"{key}.")
    check_function(f"{key}.function", reward.get("function"))
    check_reward_calls(reward, f"{key}.")
    if reward.get("model"):
        paths[f"{key}.model"] = reward["model"]


def _scores(reward: Mapping[str, Any]) -> bool:
    return bool(reward.get("function") or reward.get("model"))


def evaluate(config: dict[str, Any]) -> None:
    """Sample, score, print the tables, and write the report."""
    config = _with_policies_or_without(config)
    check(config)
    started = time.monotonic()
    folder = choose_run_dir({**config, "name": "evaluate"})
    check_place(folder, config)

    from rlhf_lightning.evaluation import accuracy_table, flat_accuracies, terminal_table, write_report
    from rlhf_lightning.evaluation.best_of_n import bound_line
    from rlhf_lightning.evaluation.harness import result_lines
    from rlhf_lightning.process.printing import Terminal

    accuracies = _accuracies(config) if config.get("rewards") else {}
    summary = flat_accuracies(accuracies)
    evaluation, more = _compare(config) if config["prompts"] else (None, {})
    tasks = _harness(config) if config.get("harness") else {}
    summary |= {f"{policy}.{key}": value for policy, each in tasks.items() for key, value in each.items()}
    files: list[Path] = []
    with held():
        write_config(folder, config)  # an earlier evaluation stays unchanged until this one is complete
        if evaluation is not None:
            files = write_report(folder, evaluation, {}, "rlhf-evaluate")
            summary = {**evaluation.flat(), **more, **summary}
        write_summary(folder, {**summary, "wall_seconds": round(time.monotonic() - started, 2)})
    if evaluation is not None:
        Terminal().print(terminal_table(evaluation))
        if config["best_of"] is not None and config["course"] is None:
            print(bound_line(config["best_of"]))
    if accuracies:
        Terminal().print(accuracy_table(accuracies))
    for line in result_lines(tasks) if tasks else ():
        print(line)
    for file in files or [folder / "summary.json"]:
        print(f"report: {file}")


def _accuracies(config: Mapping[str, Any]) -> Any:
    """Return how often each reward ranks the chosen answer first, by category."""
    from rlhf_lightning.evaluation import read_pairs, reward_accuracies

    pairs = read_pairs(config["preferences"], config.get("category"))
    return reward_accuracies(
        {name: _reward(f"rewards.{name}", each) for name, each in config["rewards"].items()}, pairs
    )


def _compare(config: Mapping[str, Any]) -> tuple[Any, dict[str, float]]:
    """Return the evaluation of the policies, and the error rates of the refusal detector."""
    from rlhf_lightning.evaluation import evaluate_policies, read_detector_error
    from rlhf_lightning.evaluation.sampling import BestOf

    judge = _judge_model(config.get("judge") or {}, config["seed"])
    detector = _detector(config, judge)
    detector_error = read_detector_error(config["refusals"], detector) if config.get("refusals") else None
    scorers = {key: _reward(key, config[key]) if _scores(config.get(key) or {}) else None for key in ("gold", "proxy")}
    best = BestOf(config["best_of"], _reward("reward", config["reward"])) if _scores(config["reward"]) else None
    settings = ("samples_per_prompt", "max_new_tokens", "temperature", "batch_size", "seed", "dtype", "ilql_beta")
    evaluation = evaluate_policies(
        policies=config["policies"],
        prompts_file=config["prompts"],
        baseline=config["baseline"],
        reference=config["policies"][config.get("reference") or config["baseline"]],
        gold=scorers["gold"],
        proxy=scorers["proxy"],
        detector=detector,
        detector_error=detector_error,
        judge=_judge(config.get("judge") or {}, judge),
        self_bleu_of=config.get("self_bleu"),
        best=best,
        encoder=_encoder((config.get("embeddings") or {}).get("model")),
        attn_implementation=config["attn_implementation"],
        **{key: config[key] for key in settings},
    )
    if config.get("course") is not None:
        evaluation.curves = _curves(config, scorers)
    return evaluation, detector_error.flat() if detector_error is not None else {}


def _harness(config: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return what lm-eval measures of each policy."""
    from rlhf_lightning.evaluation.harness import run_harness

    settings = ("batch_size", "seed", "dtype", "attn_implementation", "ilql_beta")
    return run_harness(config["policies"], *named_tasks(config["harness"]), **{key: config[key] for key in settings})


def _encoder(path: str | None) -> Any:
    from rlhf_lightning.evaluation.embeddings import KEY, Encoder

    with named_as(KEY):
        return None if path is None else Encoder(path)


def _curves(config: Mapping[str, Any], scorers: Mapping[str, Any]) -> Any:
    """Return how scores vary with the distance from the baseline, by best-of-n and by training."""
    from rlhf_lightning.evaluation.curves import over_optimization_curves
    from rlhf_lightning.rollout import SamplingSettings

    file = Path(config["course"]) / "metrics.jsonl"
    return over_optimization_curves(
        config["policies"][config["baseline"]],
        config["prompts"],
        config["best_of"],
        read_json_lines(file),
        str(file),
        scorers["gold"],
        scorers["proxy"],
        SamplingSettings(config["max_new_tokens"], config["temperature"]),
        **{key: config[key] for key in ("batch_size", "seed", "dtype", "attn_implementation", "ilql_beta")},
    )


def _reward(key: str, settings: Mapping[str, Any]) -> Any:
    from rlhf_lightning.rewards import make_reward

    with named_as(f"{key}.model"):
        return make_reward(**settings)


def _judge_model(settings: Mapping[str, Any], seed: int) -> Any:
    """Return the model that judges; None without one."""
    if not settings.get("model"):
        return None
    from rlhf_lightning.judging.judge import make_judge

    given: Any = {key: value for key, value in settings.items() if key != "function"}
    return make_judge(given, seed)


def _detector(config: Mapping[str, Any], judge: Any) -> Any:
    """Return what says whether a response refuses; None: the rule."""
    if config["refusal_detector"] == "rule":
        return None
    from rlhf_lightning.data.reading import read_records
    from rlhf_lightning.evaluation.judged import JudgedRefusals

    if not config.get("refusals") and all(row.get("kind") is None for row in read_records(config["prompts"])):
        raise UserError(
            f"refusal_detector: no row of {config['prompts']} has a kind, so no refusals are counted; give prompts "
            "with a column kind, or refusal_detector=rule"
        )
    return JudgedRefusals(judge)


def _judge(settings: Mapping[str, Any], model: Any) -> Any:
    """Return the judge that compares responses; None without one."""
    if settings.get("function"):
        from rlhf_lightning.evaluation import in_both_orders
        from rlhf_lightning.rewards.function import import_function

        return in_both_orders(import_function(settings["function"], "judge.function"))
    if model is None:
        return None
    from rlhf_lightning.evaluation.judged import by_model

    return by_model(model)
