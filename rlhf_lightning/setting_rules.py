"""Rules between settings, stated once for constructors and for the check of a config before torch is imported.

Ranges of single settings are in the annotations of the constructors (`value_checks`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rlhf_lightning.addresses import check_address
from rlhf_lightning.errors import UserError

SMOOTHED = ("sigmoid", "robust", "exo_pair")  # pairwise losses that use label smoothing
_SOURCES = ("function", "functions", "model", "models", "components", "judge", "url")


def check_smoothing(loss_type: str, label_smoothing: float) -> None:
    """Raise UserError for label smoothing with a loss that does not use it."""
    if label_smoothing and loss_type not in SMOOTHED:
        raise UserError(
            f"algorithm.label_smoothing: found {label_smoothing}; only algorithm.loss_type={' | '.join(SMOOTHED)} has "
            "it; set it to 0, or choose one of those"
        )


def check_pretraining(coef: float, data: str | None) -> None:
    """Raise UserError for a pretraining loss without text."""
    if coef and not data:
        raise UserError("algorithm.ptx.data: missing; give the pretraining text, or algorithm.ptx.coef=0")


def check_parts(prompts: int, samples: int, num_minibatches: int, accumulate: int, whole_groups: bool) -> None:
    """Raise UserError for a rollout that does not divide into its minibatches and micro-batches.

    Args:
        prompts: number of prompts per process and iteration.
        samples: number of responses to each of them.
        num_minibatches, accumulate: their product is the number of micro-batches per pass.
        whole_groups: whether the responses to a prompt stay in one micro-batch.
    """
    parts = num_minibatches * accumulate
    step = parts if whole_groups else parts // math.gcd(parts, samples)
    if prompts % step == 0:
        return
    fitting = sorted({max(1, prompts // step) * step, (prompts // step + 1) * step})
    each = f"algorithm.num_minibatches ({num_minibatches}) x trainer.accumulate_grad_batches ({accumulate})"
    why = f"{each} = {step}"
    if samples > 1:
        whole = f"groups of {samples} responses, which stay whole,"
        divided = whole if whole_groups else f"responses ({samples} per prompt)"
        why = f"{step}, as the {divided} have to divide into {each} parts"
    raise UserError(
        f"rollout.batch_size: found {prompts}; must be a multiple of {why}, such as {' or '.join(map(str, fitting))}"
    )


def check_lengths(shaping: Mapping[str, Any], max_new_tokens: int | None = None) -> None:
    """Raise UserError for penalties on a response's length that cannot be computed, or that no response reaches.

    Args:
        shaping: the settings of `RewardShaping`.
        max_new_tokens: the longest response; None: not known.
    """
    key, most = "algorithm.shaping", max_new_tokens
    weight, buffer = shaping.get("overlong_penalty"), shaping.get("overlong_buffer")
    if shaping.get("length_penalty") and most is not None and shaping.get("length_allowed", 0) >= most:
        raise UserError(
            f"{key}.length_allowed: found {shaping['length_allowed']}; no response has more than "
            f"rollout.max_new_tokens={most} tokens, so there is no penalty; choose a smaller number"
        )
    if not weight:
        return
    if buffer is None:
        raise UserError(
            f"{key}.overlong_buffer: found null, but {key}.overlong_penalty={weight} needs it; give the number of "
            "tokens over which the penalty rises"
        )
    longest = shaping.get("overlong_length") or most
    if longest is None:
        return
    name = f"{key}.overlong_length" if shaping.get("overlong_length") else "rollout.max_new_tokens"
    if buffer > longest:
        raise UserError(f"{key}.overlong_buffer: found {buffer}; must be at most {name}, which is {longest}")
    if most is not None and longest - buffer >= most:
        raise UserError(
            f"{key}.overlong_length: found {longest}; the penalty begins after {longest - buffer} tokens, and no "
            f"response has more than rollout.max_new_tokens={most}; choose a smaller number, or null"
        )


def check_accuracy(accuracy: str, samples: int, parts: Collection[str] | None, normalized: bool) -> None:
    """Raise UserError for an accuracy that cannot judge the responses to a prompt.

    Args:
        accuracy: a part of the reward, or `score`.
        samples: number of responses to each prompt.
        parts: the names of the reward's parts; None: unknown.
        normalized: whether each part is normalised before it is weighted.
    """
    if samples < 2:
        raise UserError(
            f"rollout.samples_per_prompt: found {samples}, but algorithm.accuracy={accuracy} keeps prompts with both "
            "right and wrong responses; must be at least 2; give 4 or 8, or algorithm.accuracy=null"
        )
    if parts is not None and accuracy not in ("score", *parts):
        allowed = " | ".join(["score", *parts])
        raise UserError(f"algorithm.accuracy: found {accuracy}; must be {allowed} (a part of the reward), or null")
    if normalized:
        raise UserError(
            "reward.normalize_parts: its moments would only see the groups that algorithm.accuracy keeps; set it to "
            "false, or algorithm.accuracy=null"
        )


def check_samples_to_choose(algorithm: str, trained: int | None, samples: int) -> None:
    """Raise UserError for a single response to a prompt where an algorithm chooses among several."""
    if trained is not None and samples < 2:
        raise UserError(
            f"rollout.samples_per_prompt: found {samples}, but {algorithm} chooses among the responses to a prompt; "
            "must be at least 2; give 2 or 8"
        )


def check_importance(old_logprobs: str, importance_cap: float | None) -> None:
    """Raise UserError for importance weights between engine and trainer if the engine's log-probabilities are used."""
    if old_logprobs == "engine" and importance_cap is not None:
        raise UserError(
            f"algorithm.importance_cap: found {importance_cap} with algorithm.old_logprobs=engine, which "
            "leaves nothing to weigh; set it to null, or choose algorithm.old_logprobs=trainer"
        )


def engine_logprobs_differ(engine: str) -> UserError:
    """Return the error for algorithm.old_logprobs=engine with an engine that has its own kernels or weights."""
    return UserError(
        f"algorithm.old_logprobs: found engine, but {engine} does not compute as the trainer does; choose "
        "rollout=native, or algorithm.old_logprobs=trainer"
    )


def check_held_out(val: Any, val_fraction: float) -> None:
    """Raise UserError for held-out rows that are requested twice."""
    if val is not None and val_fraction:
        raise UserError(
            f"data.val_fraction: found {val_fraction}; data.val gives the held-out rows; set one of the two "
            "(data.val_fraction=0)"
        )


def check_members(reward: Mapping[str, Any], prefix: str) -> None:
    """Raise UserError for settings of several models, or of a sum's parts, that nothing reads or that contradict."""
    models, combine = reward.get("models"), reward.get("combine", "mean")
    if models and len(models) < 2:
        raise UserError(f"{prefix}models: found 1 model; an ensemble has at least 2; for one use {prefix}model")
    check_distinct(models or [], f"{prefix}models")
    for name, default in (("combine", "mean"), ("std_coef", 1.0)):
        if reward.get(name, default) != default and not models:
            raise UserError(f"{prefix}{name}: found {reward[name]}; only several models have it; set {prefix}models")
    if reward.get("std_coef", 1.0) != 1.0 and combine != "mean_minus_std":
        raise UserError(
            f"{prefix}std_coef: found {reward['std_coef']}; only {prefix}combine=mean_minus_std reads it; set it to "
            "1.0, or choose that"
        )
    if reward.get("aggregation") is not None and not (models or reward.get("model")):
        raise UserError(
            f"{prefix}aggregation: found {reward['aggregation']}; only a process reward model has steps; set it "
            f"with {prefix}model"
        )
    if models and reward.get("aggregation") == "steps":
        raise UserError(
            f"{prefix}aggregation: found steps, but {prefix}models combines one score per response; choose min, "
            "product or last"
        )
    if reward.get("step_separator") is not None and not reward.get("function"):
        raise UserError(
            f"{prefix}step_separator: only a function needs it; a process reward model knows its own; set it to null"
        )
    if not reward.get("normalize_parts"):
        return
    parts = reward.get("components") or {}
    if not parts and not reward.get("functions"):
        raise UserError(f"{prefix}normalize_parts: only a weighted sum has parts; set it with {prefix}components")
    if both := next((name for name, part in parts.items() if part.get("standardize")), None):
        raise UserError(
            f"{prefix}components.{both}.standardize: {prefix}normalize_parts takes mean and scale out again; set one "
            "of the two"
        )


def check_one_kind(scores_steps: Mapping[str, bool], key: str) -> None:
    """Raise UserError for an ensemble of process reward models and others, whose scores have no common unit.

    Args:
        scores_steps: whether each model, by its path, scores steps.
        key: where the models were named.
    """
    steps = next((path for path, found in scores_steps.items() if found), None)
    whole = next((path for path, found in scores_steps.items() if not found), None)
    if steps is not None and whole is not None:
        raise UserError(
            f"{key}: {steps} scores steps by probabilities, and {whole} whole responses by numbers without bounds, "
            "which have no common unit; combine models of one kind, or add the two up as components with weights"
        )


def check_distinct(models: Sequence[str], key: str) -> None:
    """Raise UserError for an ensemble that has a model twice, under whatever spelling of its path.

    Args:
        models: paths of its members.
        key: where the user named them.
    """
    places = [os.path.realpath(os.path.expanduser(path)) for path in models]
    twice = next((path for i, path in enumerate(models) if places[i] in places[:i]), None)
    if twice is not None:
        raise UserError(f"{key}: {twice} is named twice, and would count twice; name each model once")


def check_cost(cost: Mapping[str, Any], prefix: str = "cost.") -> None:
    """Raise UserError unless exactly one of a function and a model is given, with only its own settings.

    Args:
        cost: the settings of `make_cost`.
        prefix: what the user writes before their names.
    """
    function, model = cost.get("function"), cost.get("model")
    if bool(function) == bool(model):
        found = "both" if model else "no source of costs"
        raise UserError(f"{prefix[:-1]}: found {found}; give one of {prefix}function=... | {prefix}model=...")
    unread = {"dtype": "float32", "attn_implementation": None, "signed": True} if function else {"timeout": None}
    for name, default in unread.items():
        if cost.get(name, default) != default:
            who = "a cost model" if function else "a function"
            raise UserError(f"{prefix}{name}: found {_plain(cost[name])}; only {who} uses it; leave it at its default")
    if function and "." not in function:
        raise UserError(f'{prefix}function: found "{function}"; must be a dotted path such as my_package.my_cost')


def unsigned_cost(prefix: str, path: str) -> str:
    """Return the message about a model whose 0 does not mean safe."""
    return (
        f"{prefix}model: {path} was not trained with sign terms, so its 0 does not separate safe from unsafe answers, "
        f"and of a reward model higher is better; train one with experiment=cost, or set {prefix}signed=false to take "
        "its scores as costs anyway"
    )


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def check_reward(reward: Mapping[str, Any], prefix: str = "reward.") -> None:
    """Raise UserError unless exactly one source of scores is given, with only its own settings.

    Args:
        reward: the settings of `make_reward`.
        prefix: what the user writes before their names.
    """
    sources = [name for name in _SOURCES if reward.get(name)]
    choices = " | ".join(f"{prefix}{name}=..." for name in _SOURCES)
    if not sources:
        raise UserError(f"{prefix[:-1]}: no source of scores; give one of {choices}")
    if len(sources) > 1:
        given = " and ".join(f"{prefix}{name}" for name in sources)
        raise UserError(f"{given}: only one source of scores; set the others to null")
    for name, part in (reward.get("components") or {}).items():
        check_reward(part, f"{prefix}components.{name}.")
    _check_weights(reward, prefix)
    check_members(reward, prefix)
    one_model = reward.get("model") or reward.get("models")
    if reward.get("standardize") and not one_model:
        raise UserError(
            f"{prefix}standardize: only a reward model carries the mean and std of its scores; set it with "
            f"{prefix}model, or in a part: {prefix}components.<name>.standardize"
        )
    defaults = {"dtype": "float32", "attn_implementation": None}
    loading = [name for name, default in defaults.items() if reward.get(name, default) != default]
    if loading and not one_model:
        raise UserError(
            f"{prefix}{loading[0]}: only a reward model is loaded with it; set it with {prefix}model, or in a part: "
            f"{prefix}components.<name>.{loading[0]}"
        )
    if reward.get("timeout") is not None and (one_model or reward.get("judge")):
        raise UserError(
            f"{prefix}timeout: found {reward['timeout']}; only a function can have a time limit; set it to null"
        )
    for name in ("concurrency", "attempts"):
        if reward.get(name) is not None and (one_model or reward.get("judge")):
            raise UserError(f"{prefix}{name}: found {reward[name]}; only calls of a function have it; set it to null")
    if reward.get("key_env") and not reward.get("url"):
        raise UserError(f"{prefix}key_env: only a server asks for a key; set it with {prefix}url")
    if url := reward.get("url"):
        check_address(
            f"{prefix}url", str(url), "http://localhost:8000/score", query=True, log_in=f"give a key by {prefix}key_env"
        )
    if reward.get("arguments") and not reward.get("function"):
        raise UserError(
            f"{prefix}arguments: only a function has them; set them with {prefix}function, or in a part: "
            f"{prefix}components.<name>.arguments"
        )
    _check_functions(reward, prefix)


def _check_weights(reward: Mapping[str, Any], prefix: str) -> None:
    """Raise UserError if all parts of a sum have the weight 0: every response would have the same score."""
    parts = reward.get("components") or {}
    weights = {f"{prefix}components.{name}.weight": part.get("weight", 1) for name, part in parts.items()}
    if reward.get("weights"):
        weights = {f"{prefix}weights": each for each in reward["weights"] if each} or {f"{prefix}weights": 0}
    if weights and not any(weights.values()):
        found = "0 for every part" if len(weights) > 1 or not parts else "0 for the only part"
        raise UserError(
            f"{next(iter(weights))}: found {found}, so that all responses have the same score; give at least one part "
            "another weight"
        )


_VERIFIERS = {  # what they do not run without
    "format_match": ("pattern", "missing; give the regular expression that a completion must match"),
    "code_runs": (
        "run_code",
        "must be true: code_runs runs code that a model has written, on this machine, as you; its time and memory are "
        "limited, but it can read your files and use the network, so run it in a container or a virtual machine",
    ),
}
OF_VERIFIERS = "rlhf_lightning.rewards."


def check_verifier(name: str, arguments: Mapping[str, Any], prefix: str) -> None:
    """Raise UserError if a verifier lacks the argument that it does not run without.

    Args:
        name: the last part of its dotted path.
        arguments: its settings.
        prefix: what the user writes before their names.
    """
    needed, why = _VERIFIERS.get(name, (None, ""))
    if needed is not None and not arguments.get(needed):
        raise UserError(f"{prefix}{needed}: {why}")


def _check_functions(reward: Mapping[str, Any], prefix: str) -> None:
    functions, weights = reward.get("functions") or [], reward.get("weights")
    if weights is not None and not functions:
        raise UserError(
            f"{prefix}weights: there is one for each of {prefix}functions; a part has its own: "
            f"{prefix}components.<name>.weight"
        )
    if weights is not None and len(weights) != len(functions):
        raise UserError(
            f"{prefix}weights: found {len(weights)} for {len(functions)} functions; give one per function of "
            f"{prefix}functions, or null for 1 each"
        )
    for each in (reward.get("function"), *functions):
        if each and each.startswith(OF_VERIFIERS):
            check_verifier(each.removeprefix(OF_VERIFIERS), reward.get("arguments") or {}, f"{prefix}arguments.")
    twice = next((each for i, each in enumerate(functions) if each in functions[:i]), None)
    if twice is not None:
        raise UserError(f"{prefix}functions: {twice} is there twice; give it once, with the sum of the weights")
    named = {f"{prefix}function": reward.get("function")}
    named |= {f"{prefix}functions[{i}]": each for i, each in enumerate(functions)}
    for key, function in named.items():
        if function and "." not in function:
            raise UserError(f'{key}: found "{function}"; must be a dotted path such as my_package.my_reward')


def part_names(functions: Sequence[str]) -> list[str]:
    """Return the names under which a sum of functions is logged: the last parts of their paths where those differ.

    >>> part_names(["mine.polite", "mine.short", "other.short"])
    ['polite', 'mine_short', 'other_short']
    """
    last = [each.rpartition(".")[2] for each in functions]
    whole = [each.replace(".", "_") for each in functions]
    return [long if last.count(short) > 1 else short for long, short in zip(whole, last, strict=True)]


def check_calls(waits: bool, calls: Mapping[str, Any], prefix: str = "reward.") -> None:
    """Raise UserError for settings of `async` functions and servers without any.

    Args:
        waits: whether there is one.
        calls: the settings.
        prefix: what the user writes before their names.
    """
    for name in ("concurrency", "attempts"):
        if calls.get(name) is not None and not waits:
            raise UserError(
                f"{prefix}{name}: found {calls[name]}; only calls of an async function or a server have it; set it to "
                "null, or write `async def`"
            )


def check_teacher(path: str | None) -> str:
    """Return the path of the teacher to distil. Raises UserError if there is none."""
    if path is None:
        raise UserError("algorithm.teacher: missing; give a run folder, a Hugging Face folder or a hub name")
    return path
