"""Every kind of run on the pretended device, in a separate process: python -m tests.devices.scenarios FOLDER

Writes `results.json`: scenario -> what went wrong, the facts that it reports, and its waits by phase.
"""

from __future__ import annotations

import tests.devices.pretended as pretended  # isort: skip  # before torch

import json
import logging
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch

from rlhf_lightning.algorithms import (
    CostModule,
    CPOModule,
    DPOModule,
    GKDModule,
    ILQLModule,
    KLPenalty,
    KTOModule,
    NLPOModule,
    OnlineDPOModule,
    ORPOModule,
    PolicyGradientModule,
    PPOLagrangianModule,
    PPOModule,
    ProcessRewardModule,
    RAFTModule,
    RewardModule,
    RewardShaping,
    SFTModule,
    SimPOModule,
)
from rlhf_lightning.callbacks import (
    Guardrails,
    Instruments,
    MetricsFile,
    ReproducibleResume,
    ResumableCheckpoint,
    SampleTable,
    instruments,
)
from rlhf_lightning.data import (
    PreferenceDataModule,
    PromptDataModule,
    RewardedDataModule,
    SafetyDataModule,
    SFTDataModule,
    StepDataModule,
    UnpairedDataModule,
)
from rlhf_lightning.models import load_causal_lm, load_process_reward_model, load_reward_model, save_model
from rlhf_lightning.models.adapters import LoRA
from rlhf_lightning.rewards import ModelReward, WeightedSum
from rlhf_lightning.rollout import NativeEngine, RolloutSettings, SamplingSettings, native, seeded_generator
from tests.devices import command
from tests.devices.waits import Wait
from tests.tiny import WORDS, tiny_model, tiny_tokenizer

Waits = Counter[Wait]
SCENARIOS: dict[str, Callable[[Path], dict[str, Any]]] = {}
LORA = LoRA(rank=2, alpha=4)
ADAM = partial(torch.optim.Adam, lr=1e-3)
SAMPLING = SamplingSettings(max_new_tokens=12)


def scenario(function: Callable[[Path], dict[str, Any]]) -> Callable[[Path], dict[str, Any]]:
    SCENARIOS[function.__name__] = function
    return function


class Phases(L.Callback):
    """Records the waits from the start of every batch to the next one, and from epoch to epoch."""

    def __init__(self) -> None:
        self.batches: list[Waits] = []
        self.epochs: list[Waits] = []

    def _mark(self, marks: list[Waits]) -> None:
        marks.append(Counter(pretended.waits.counts))

    def on_train_batch_start(self, *_: Any) -> None:
        self._mark(self.batches)

    def on_train_epoch_start(self, *_: Any) -> None:
        self._mark(self.epochs)

    def on_train_end(self, *_: Any) -> None:
        self._mark(self.epochs)

    def between(self, marks: list[Waits], i: int) -> Waits:
        return marks[i + 1] - marks[i]


def fit(folder: Path, module: Any, data: Any, **settings: Any) -> tuple[Any, Phases]:
    phases = Phases()
    instruments.SECONDS = 0.0  # the device's speed does not matter
    callbacks = [Guardrails(), Instruments(), MetricsFile(), ReproducibleResume(), SampleTable(), phases]
    if settings.pop("checkpoints", False):
        callbacks.append(ResumableCheckpoint(folder / "checkpoints", save_last=True, save_top_k=0, every_n_epochs=1))
        settings["enable_checkpointing"] = True
    resume = settings.pop("resume", None)
    defaults: dict[str, Any] = {
        "accelerator": "cuda",
        "devices": 1,
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "log_every_n_steps": 100,
        "gradient_clip_val": 1.0,
        "default_root_dir": folder,
    }
    trainer = L.Trainer(**{**defaults, **settings}, callbacks=callbacks)
    trainer.fit(module, data, ckpt_path=resume)
    return trainer, phases


def where(module: Any) -> str:
    """Return the device that the losses came from: the weights are on the CPU again once a fit has ended."""
    return str(module.trainer.strategy.root_device)


# ---- at least one step of every module


def base(folder: Path, name: str = "base") -> Path:
    if not (folder / name).is_dir():
        tiny_model(layers=1).save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    return folder / name


def scorer(folder: Path) -> Path:
    classifier = base(folder, "scores")
    save_model(load_reward_model(classifier), tiny_tokenizer(), classifier)
    return classifier


def sequences(n: int = 8) -> list[dict[str, str]]:
    return [{"prompt": WORDS[i % 3], "completion": " ".join(WORDS[i : i + 1 + i % 4])} for i in range(n)]


def pairs(n: int = 8) -> list[dict[str, str]]:
    return [
        {"prompt": WORDS[i], "chosen": " ".join(WORDS[i : i + 3 + i % 3]), "rejected": WORDS[i + 1]} for i in range(n)
    ]


def prompts(n: int = 16) -> list[dict[str, str]]:
    return [{"prompt": " ".join(WORDS[i : i + 1 + i % 4])} for i in range(n)]


def early(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
    """Count words from the first half of the alphabet."""
    return [float(sum(word < "n" for word in response.split())) for response in responses]


def supervised(folder: Path, **arguments: Any) -> tuple[Any, Any]:
    model = partial(load_causal_lm, base(folder), **arguments)
    return SFTModule(model, tiny_tokenizer(), ADAM), SFTDataModule(
        tiny_tokenizer(), sequences(), sequences(4), batch_size=2
    )


def reward(folder: Path, **arguments: Any) -> tuple[Any, Any]:
    model = partial(load_reward_model, base(folder), **arguments)
    return RewardModule(model, tiny_tokenizer(), ADAM), PreferenceDataModule(
        tiny_tokenizer(), pairs(), pairs(4), batch_size=2
    )


def preferences(folder: Path, model: dict[str, Any] | None = None, **arguments: Any) -> tuple[Any, Any]:
    load = partial(load_causal_lm, base(folder), **(model or {}))
    return DPOModule(load, tiny_tokenizer(), ADAM, **arguments), PreferenceDataModule(
        tiny_tokenizer(), pairs(), pairs(4), batch_size=2
    )


def ppo(folder: Path, model: dict[str, Any] | None = None, **arguments: Any) -> tuple[Any, Any]:
    load = partial(load_causal_lm, base(folder), **(model or {}))
    settings: dict[str, Any] = {
        "reward": early,
        "rollout": RolloutSettings(max_new_tokens=12, batch_size=8, generation_batch_size=4),
        "kl": KLPenalty(target=2.0, horizon=100),
        "ppo_epochs": 1,
        "num_minibatches": 2,
        **arguments,
    }
    return PPOModule(load, tiny_tokenizer(), ADAM, **settings), PromptDataModule(tiny_tokenizer(), prompts())


def steps(phases: Phases) -> dict[str, Any]:
    """Return the waits of a step that is not the first one and logs nothing."""
    return {"step": phases.between(phases.batches, 1)}


def iterations(phases: Phases) -> dict[str, Any]:
    """Return the waits of an iteration that is not the first one, and of its first step."""
    return {"iteration": phases.between(phases.epochs, 1), "step": phases.between(phases.batches, 2)}


@scenario
def sft(folder: Path) -> dict[str, Any]:
    trainer, phases = fit(folder, *supervised(folder))
    trainer.lightning_module.export(folder / "model")
    return {"on": where(trainer.lightning_module), **steps(phases)}


@scenario
def sft_lora(folder: Path) -> dict[str, Any]:
    trainer, phases = fit(folder, *supervised(folder, adapter=LORA))
    trainer.lightning_module.export(folder / "model")
    return {"on": where(trainer.lightning_module), **steps(phases)}


@scenario
def new_score_head(folder: Path) -> dict[str, Any]:
    trainer, phases = fit(folder, *reward(folder))
    trainer.lightning_module.export(folder / "model")
    return {"on": where(trainer.lightning_module), **steps(phases)}


@scenario
def new_score_head_lora(folder: Path) -> dict[str, Any]:
    trainer, phases = fit(folder, *reward(folder, adapter=LORA))
    trainer.lightning_module.export(folder / "model")
    return {"on": where(trainer.lightning_module), **steps(phases)}


@scenario
def process_reward_lora(folder: Path) -> dict[str, Any]:
    rows = [{"prompt": word, "completions": [" a", " b"][:n], "labels": [True] * n} for n in (1, 2) for word in "cdef"]
    data = StepDataModule(tiny_tokenizer(), rows, rows[:4], batch_size=2, step_separator=" z")
    load = partial(load_process_reward_model, base(folder), adapter=LORA)
    trainer, phases = fit(folder, ProcessRewardModule(load, tiny_tokenizer(), ADAM), data)
    trainer.lightning_module.export(folder / "model")
    return {"on": where(trainer.lightning_module), **steps(phases)}


@scenario
def dpo(folder: Path) -> dict[str, Any]:
    trainer, phases = fit(folder, *preferences(folder))
    return {"on": where(trainer.lightning_module), **steps(phases)}


@scenario
def dpo_lora(folder: Path) -> dict[str, Any]:
    trainer, phases = fit(folder, *preferences(folder, {"adapter": LORA}))
    return {"on": where(trainer.lightning_module), **steps(phases)}


@scenario
def orpo_lora(folder: Path) -> dict[str, Any]:
    return without_reference(folder, ORPOModule)


@scenario
def simpo_lora(folder: Path) -> dict[str, Any]:
    return without_reference(folder, SimPOModule)


@scenario
def cpo_lora(folder: Path) -> dict[str, Any]:
    return without_reference(folder, CPOModule)


def without_reference(folder: Path, kind: Any) -> dict[str, Any]:
    """Train a LoRA on pairs, without a reference."""
    load = partial(load_causal_lm, base(folder), adapter=LORA)
    data = PreferenceDataModule(tiny_tokenizer(), pairs(), pairs(4), batch_size=2)
    trainer, phases = fit(folder, kind(load, tiny_tokenizer(), ADAM), data)
    return {"on": where(trainer.lightning_module), **steps(phases)}


@scenario
def kto_lora(folder: Path) -> dict[str, Any]:
    load = partial(load_causal_lm, base(folder), adapter=LORA)
    data = UnpairedDataModule(tiny_tokenizer(), pairs(), pairs(4), batch_size=2)
    trainer, phases = fit(folder, KTOModule(load, tiny_tokenizer(), ADAM), data)
    return {"on": where(trainer.lightning_module), **steps(phases)}


@scenario
def ilql_lora(folder: Path) -> dict[str, Any]:
    load = partial(load_causal_lm, base(folder), adapter=LORA)
    rows = [{**row, "reward": i % 3} for i, row in enumerate(sequences())]
    data = RewardedDataModule(tiny_tokenizer(), rows, rows[:4], batch_size=2)
    trainer, phases = fit(folder, ILQLModule(load, tiny_tokenizer(), ADAM), data)
    return {"on": where(trainer.lightning_module), **steps(phases)}


@scenario
def gkd_lora(folder: Path) -> dict[str, Any]:
    load = partial(load_causal_lm, base(folder), adapter=LORA)
    data = SFTDataModule(tiny_tokenizer(), sequences(), sequences(4), batch_size=2)
    settings = {"teacher": str(base(folder)), "max_new_tokens": 6}
    trainer, _ = fit(folder, GKDModule(load, tiny_tokenizer(), ADAM, **settings), data)
    return {"on": where(trainer.lightning_module)}


@scenario
def dpo_precomputed(folder: Path) -> dict[str, Any]:
    trainer, phases = fit(folder, *preferences(folder, precompute_reference=True))
    return {"on": where(trainer.lightning_module), **steps(phases)}


@scenario
def ppo_separate(folder: Path) -> dict[str, Any]:
    """With a separate reward model, and with a function."""
    parts = {"model": ModelReward(scorer(folder), batch_size=4), "early": early}
    scores = WeightedSum(parts, {"model": 1.0, "early": 0.5})
    trainer, phases = fit(folder, *ppo(folder, reward=scores, layout="separate"), max_epochs=2)
    assert str(parts["model"].model.device) == "cuda:0"  # type: ignore[attr-defined]
    trainer.lightning_module.export(folder / "model")
    return {"on": where(trainer.lightning_module), **iterations(phases)}


@scenario
def ppo_shared_lora(folder: Path) -> dict[str, Any]:
    trainer, phases = fit(
        folder, *ppo(folder, {"adapter": LORA}, target_kl=1.0, shaping=RewardShaping(normalize=True)), max_epochs=2
    )
    trainer.lightning_module.export(folder / "model")
    return {"on": where(trainer.lightning_module), **iterations(phases)}


@scenario
def dapo(folder: Path) -> dict[str, Any]:
    """With prompts that are sampled again, and responses that are left out of the loss."""
    return in_pairs(folder, PolicyGradientModule, accuracy="score", max_tries=2, mask_truncated=True)


@scenario
def online_dpo(folder: Path) -> dict[str, Any]:
    return in_pairs(folder, OnlineDPOModule)


@scenario
def raft(folder: Path) -> dict[str, Any]:
    return in_pairs(folder, RAFTModule)


@scenario
def gspo(folder: Path) -> dict[str, Any]:
    return in_pairs(folder, PolicyGradientModule, ratio="sequence", aggregation="sequence", clip_range=0.04)


@scenario
def cispo(folder: Path) -> dict[str, Any]:
    return in_pairs(folder, PolicyGradientModule, loss_type="cispo", clip_range=None, clip_range_high=4.0)


@scenario
def nlpo(folder: Path) -> dict[str, Any]:
    """With masks, and a copy that is refreshed after the first iteration."""
    return in_pairs(folder, NLPOModule, mask_refresh=1)


@scenario
def ppo_lagrangian(folder: Path) -> dict[str, Any]:
    """With a second critic."""
    return in_pairs(folder, PPOLagrangianModule, cost=early, cost_limit=0.5)


@scenario
def cost(folder: Path) -> dict[str, Any]:
    rows = [{"prompt": word, "chosen": " a", "rejected": " b c", "chosen_safe": True} for word in "cdefghij"]
    rows = [{**row, "rejected_safe": i % 2 > 0} for i, row in enumerate(rows)]
    data = SafetyDataModule(tiny_tokenizer(), rows, rows[:4], batch_size=2)
    trainer, _ = fit(folder, CostModule(partial(load_reward_model, base(folder)), tiny_tokenizer(), ADAM), data)
    trainer.lightning_module.export(folder / "model")
    return {"on": where(trainer.lightning_module)}


def in_pairs(folder: Path, kind: Any, **settings: Any) -> dict[str, Any]:
    """Train an algorithm on two responses to each prompt."""
    rollout = RolloutSettings(max_new_tokens=12, batch_size=4, samples_per_prompt=2)
    further = {"reward": early, "rollout": rollout, "ppo_epochs": 1, "num_minibatches": 2, **settings}
    module = kind(partial(load_causal_lm, base(folder)), tiny_tokenizer(), ADAM, **further)
    trainer, phases = fit(folder, module, PromptDataModule(tiny_tokenizer(), prompts()), max_epochs=2)
    trainer.lightning_module.export(folder / "model")
    return {"on": where(trainer.lightning_module), **iterations(phases)}


@scenario
def grpo(folder: Path) -> dict[str, Any]:
    module = PolicyGradientModule(
        partial(load_causal_lm, base(folder)),
        tiny_tokenizer(),
        ADAM,
        reward=early,
        rollout=RolloutSettings(max_new_tokens=12, batch_size=4, samples_per_prompt=2),
        kl=KLPenalty(kind="fixed", coef=0.04, placement="loss", estimator="k3"),
        scale="std",
        aggregation="sequence",
        ppo_epochs=1,
        num_minibatches=2,
    )
    trainer, phases = fit(folder, module, PromptDataModule(tiny_tokenizer(), prompts()), max_epochs=2)
    trainer.lightning_module.export(folder / "model")
    return {"on": where(trainer.lightning_module), **iterations(phases)}


@scenario
def ppo_in_parts(folder: Path) -> dict[str, Any]:
    trainer, phases = fit(
        folder, *ppo(folder, tokens_per_microbatch=64, old_logprobs="engine", entropy_coef=0.01), max_epochs=2
    )
    return {"on": where(trainer.lightning_module), **iterations(phases)}


@scenario
def ppo_deterministic(folder: Path) -> dict[str, Any]:
    try:
        trainer, _ = fit(folder, *ppo(folder, layout="separate"), deterministic=True, max_epochs=1)
        return {"on": where(trainer.lightning_module)}
    finally:
        torch.use_deterministic_algorithms(False)


@scenario
def resumed(folder: Path) -> dict[str, Any]:
    """Compare a run of two epochs, whose dropout draws on the device, with one resumed after the first."""
    dropout, weights = LoRA(rank=2, alpha=4, dropout=0.5), []
    for name, epochs in (("whole", [2]), ("halves", [1, 2])):
        for n in epochs:
            L.seed_everything(n if n != epochs[0] else 0, verbose=False)  # another process has other random states
            last = folder / name / "checkpoints" / "last.ckpt"
            module, data = supervised(folder, adapter=dropout)
            resume = last if last.exists() else None
            fit(folder / name, module, data, checkpoints=True, max_epochs=n, resume=resume)
        weights.append([p.detach().cpu() for p in module.parameters() if p.requires_grad])
    return {"equal": all(torch.equal(a, b) for a, b in zip(*weights, strict=True))}


# ---- the engine


def sampled(model: Any, sampling: SamplingSettings = SAMPLING, rows: int = 24, slots: int = 8) -> tuple[Any, Waits]:
    device = next(model.parameters()).device
    engine = NativeEngine(0, [1, 3, 4, 5, 6], slots)
    engine.sync(model)
    ids = [[3 + (i * 7 + j) % 20 for j in range(1 + i % 5)] for i in range(rows)]
    with pretended.waits.counted() as counted:
        generation = engine.generate(ids, sampling, seeded_generator(device, "test"))
    return generation, counted


@scenario
def engine(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for family in ("llama", "gemma2"):
        model = tiny_model(family, layers=1).to("cuda")
        generation, waits = sampled(model)
        facts[family] = {"waits": waits, "tokens": int(generation.mask.sum()), "ended": int(generation.ended.sum())}
        native.LOOK_EVERY = 2
        again, _ = sampled(model)
        native.LOOK_EVERY = 8
        facts[family]["same"] = torch.equal(again.tokens.cpu(), generation.tokens.cpu())
    return facts


# ---- whole commands


@scenario
def commands(folder: Path) -> dict[str, Any]:
    found = command.run(folder, (*command.USUAL, command.REFUSED))
    evaluated = json.loads((folder / "evaluated" / "summary.json").read_text())
    return {"runs": found[:-1], "refused": found[-1], "evaluated": evaluated}


@scenario
def more_commands(folder: Path) -> dict[str, Any]:
    command.write_families(folder)
    return {"runs": command.run(folder, command.MORE)}


def plain(value: Any) -> Any:
    """Return counts of waits as rows of [kind, operation, line, library, times]."""
    if isinstance(value, Counter):
        return [[*wait, n] for wait, n in value.most_common()]
    return {key: plain(item) for key, item in value.items()} if isinstance(value, dict) else value


def main(folder: Path, names: list[str]) -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    out: dict[str, Any] = {}
    with pretended.device():
        for name in names or SCENARIOS:
            own = folder / name
            own.mkdir()
            L.seed_everything(0, verbose=False)
            began = time.process_time()
            try:
                out[name] = {"error": None, **plain(SCENARIOS[name](own))}
            except Exception:
                out[name] = {"error": traceback.format_exc()}
            out[name]["seconds"] = time.process_time() - began
    (folder / "results.json").write_text(json.dumps(out))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
