"""What to change so that a run fits its device: each change alone, and the first few together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from rlhf_lightning.models import NF4, LoRA
from rlhf_lightning.planning.passes import generation
from rlhf_lightning.planning.plan import make_plan
from rlhf_lightning.planning.run import Run

GPUS = 8  # GPUs of one machine


@dataclass(frozen=True)
class Change:
    """Command-line overrides, and the run's peak with them, in bytes."""

    overrides: str
    peak: int


def advise(run: Run, room: int) -> tuple[list[Change], Change | None]:
    """Return the changes that lower the peak, and a combination that makes the run fit if no single one does.

    Args:
        run: a run whose peak is above `room`.
        room: bytes a run may use.

    Returns:
        Every single change that helps, in the order in which one would try them; and the shortest prefix of that list
        that
        fits (None: one of them fits alone, or not even all of them do).
    """
    before = make_plan(run).peak
    changes = [Change(words, make_plan(changed).peak) for change in CHANGES for words, changed in change(run)]
    single = [change for change in changes if change.peak < before]
    return single, None if any(change.peak <= room for change in single) else _together(run, room)


def _together(run: Run, room: int) -> Change | None:
    """Apply one change after the other until the run fits. Some only help after others, so there are several rounds."""
    overrides: list[str] = []
    peak, before = make_plan(run).peak, None
    while peak != before:
        before = peak
        for change in CHANGES:
            for words, changed in change(run):
                if (smaller := make_plan(changed).peak) < peak:
                    run, peak = changed, smaller
                    overrides.append(words)
                if peak <= room:
                    return Change(" ".join(_without_repeats(overrides)), peak)
    return None


def _without_repeats(overrides: Sequence[str]) -> list[str]:
    """Return the overrides without repeated keys; later values win."""
    last = {word.partition("=")[0]: word for words in overrides for word in words.split()}
    return list(last.values())


Changed = Iterator[tuple[str, Run]]


def _checkpointing(run: Run) -> Changed:
    if not run.policy.activation_checkpointing:
        policy = replace(run.policy, activation_checkpointing=True)
        yield "model.activation_checkpointing=true", replace(run, policy=policy)


def _smaller_batches(run: Run) -> Changed:
    count, accumulate = run.rows.count, run.accumulate
    per_row = 2 if run.pairs else 1  # chosen and rejected
    if count <= per_row:
        return
    smallest = replace(run, rows=replace(run.rows, count=per_row), accumulate=accumulate * (count // per_row))
    words = f"trainer.accumulate_grad_batches={smallest.accumulate}"
    yield words if run.rollout else f"data.batch_size=1 {words}", smallest


def _fewer_at_once(run: Run) -> Changed:
    if run.rollout is None or run.rollout.engine != "native":
        return
    samples = run.rollout.samples
    prompts = max(1, run.rows.count // samples)
    if run.rollout.at_once > prompts * samples:
        rollout = replace(run.rollout, at_once=prompts * samples)
        yield f"rollout.generation_batch_size={prompts}", replace(run, rollout=rollout)


def _asleep(run: Run) -> Changed:
    if run.rollout is not None and run.rollout.engine == "vllm" and not run.rollout.sleeps:
        yield "rollout.sleep=true", replace(run, rollout=replace(run.rollout, sleeps=True))


def _smaller_share(run: Run) -> Changed:
    """Return the least share for vLLM: its copy of the weights plus a tenth, and the keys and values of one row."""
    rollout = run.rollout
    if rollout is None or rollout.engine != "vllm" or not rollout.device:
        return
    cache = generation(run.policy, 1, rollout.prompt, rollout.response, run.autocast).cache
    needed = 1.1 * run.policy.weights().total + cache
    share = math.ceil(needed / rollout.device * 20) / 20
    if share < rollout.share:
        yield f"rollout.gpu_memory_utilization={share:g}", replace(run, rollout=replace(rollout, share=share))


def _fewer_scored(run: Run) -> Changed:
    if run.reward_model is not None and run.reward_model.rows > run.rows.count:
        reward_model = replace(run.reward_model, rows=run.rows.count)
        yield f"reward.batch_size={reward_model.rows}", replace(run, reward_model=reward_model)


def _shared_layout(run: Run) -> Changed:
    if run.separate:
        yield "algorithm.layout=shared", replace(run, separate=False)


def _reference_before(run: Run) -> Changed:
    if run.keeps_reference and run.policy.lora is None:
        yield "algorithm.precompute_reference=true", replace(run, keeps_reference=False)


def _bfloat16(run: Run) -> Changed:
    if run.policy.element < 4 or (run.autocast is not None and run.policy.lora is None):
        return
    if run.policy.lora is not None:  # the adapter stays in float32
        policy = replace(run.policy, dtype=torch.bfloat16)
        yield (
            "model.dtype=bfloat16 trainer.precision=bf16-mixed",
            replace(run, policy=policy, autocast=torch.bfloat16),
        )
    else:
        # Not bf16-true: at usual learning rates, an update leaves most bfloat16 weights unchanged.
        yield "trainer.precision=bf16-mixed", replace(run, autocast=torch.bfloat16)


def _lora(run: Run) -> Changed:
    if run.policy.lora is None:
        yield "model/adapter=lora", replace(run, policy=replace(run.policy, lora=LoRA()))


def _four_bits(run: Run) -> Changed:
    if run.policy.nf4 is None:
        policy = replace(run.policy, lora=run.policy.lora or LoRA(), nf4=NF4())
        adapter = "" if run.policy.lora else "model/adapter=lora "
        yield f"{adapter}model/quantization=nf4", replace(run, policy=policy)


def _more_devices(run: Run) -> Changed:
    if run.devices.sharding not in ("zero3", "fsdp2") and run.policy.nf4 is None:
        devices = replace(run.devices, processes=max(GPUS, run.devices.processes), sharding="fsdp2", gradient_copies=1)
        yield f"trainer=fsdp2 trainer.devices={devices.processes}", replace(run, devices=devices)


CHANGES: tuple[Callable[[Run], Changed], ...] = (
    _checkpointing,
    _smaller_batches,
    _fewer_at_once,
    _asleep,
    _smaller_share,
    _fewer_scored,
    _shared_layout,
    _reference_before,
    _bfloat16,
    _lora,
    _four_bits,
    _more_devices,
)
