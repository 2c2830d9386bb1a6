"""The dtypes of computations: sums, heads, long rows, decoding; and which precisions are refused."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.precision import HalfPrecision
from torch.utils._python_dispatch import TorchDispatchMode

from rlhf_lightning.algorithms import DPOModule
from rlhf_lightning.data import PreferenceDataModule
from rlhf_lightning.errors import UserError
from rlhf_lightning.kernels import row_attention
from rlhf_lightning.models import (
    LoRA,
    RewardModel,
    SharedRewardModel,
    ValueHead,
    load_causal_lm,
    load_reward_model,
    save_model,
)
from rlhf_lightning.models.forward import predict_tokens
from rlhf_lightning.models.precision import WEIGHTS
from rlhf_lightning.rollout import NativeEngine, SamplingSettings, seeded_generator
from tests.algorithms.conftest import dpo, ppo, sft, trainer
from tests.tiny import WORDS, tiny_model, tiny_tokenizer

BFLOAT16 = HalfPrecision("bf16-true")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tiny_model(hidden=64).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_sums_of_thousands_of_values_are_those_of_float64() -> None:
    """In bfloat16 a sum of ones stops growing at 256."""
    module, _ = sft()
    values = torch.rand(3000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with BFLOAT16.forward_context():
        for i, value in enumerate(values.tolist()):
            module.record("mean", value if i % 2 else torch.tensor(value, dtype=torch.float64), 1 + i % 3)
            module.record_max("max", torch.tensor(value, dtype=torch.float32))
        BFLOAT16.convert_module(module)  # as at a second fit, or after a resume
    weights = torch.arange(len(values)) % 3 + 1
    assert float(module.metrics["mean"].compute()) == pytest.approx(float((values * weights).sum() / weights.sum()))
    assert module.metrics["mean"].compute().dtype == torch.float32
    assert float(module.maxima["max"].compute()) == float(values.max().float())


def test_a_cast_reaches_the_weights_alone(base: Path) -> None:
    module, _ = ppo(partial(load_causal_lm, base, adapter=LoRA(rank=4)))
    module.configure_model()
    before = {name: b.clone() for name, b in module.named_buffers()}
    for cast in (lambda: module.to(torch.bfloat16), module.bfloat16, module.half):
        cast()
        types = {name: p.dtype for name, p in module.named_parameters()}
        kept = {name for name, dtype in types.items() if dtype == torch.float32}
        assert kept == {name for name in types if "lora_" in name or "value_head" in name}
    assert before and all(torch.equal(b, before[name]) for name, b in module.named_buffers())
    module.double()
    assert {p.dtype for p in module.parameters()} == {torch.float64}


def test_under_deepspeed_a_cast_reaches_all_parameters_and_heads_compute_in_float32(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning.pytorch.strategies import DeepSpeedStrategy

    module, _ = ppo(partial(load_causal_lm, base, adapter=LoRA(rank=4)))
    module.configure_model()
    strategy = object.__new__(DeepSpeedStrategy)  # making one needs the package
    monkeypatch.setattr(type(module), "strategy", strategy)
    module.bfloat16()
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    assert {b.dtype for name, b in module.named_buffers() if "inv_freq" in name} == {torch.float32}
    assert module.actor_critic.value_head(torch.ones(3, 64, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16])
def test_heads_are_computed_in_float32_whatever_surrounds_them(cast: torch.dtype) -> None:
    head = ValueHead(64).to(cast)
    assert {p.dtype for p in head.parameters()} == {torch.float32}
    torch.nn.init.normal_(head.linear.weight, std=5)
    states = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    with BFLOAT16.forward_context(), torch.autocast("cpu", torch.bfloat16):
        values = head(states)
    exact = states.double() @ head.linear.weight.double()[0]
    assert values.dtype == torch.float32
    assert torch.allclose(values.double(), exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("adapter", [None, LoRA(rank=4)], ids=["full", "lora"])
def test_a_score_head_keeps_its_digits_over_a_half_precision_export(
    adapter: LoRA | None, base: Path, tmp_path: Path
) -> None:
    model = load_reward_model(base, dtype="bfloat16", adapter=adapter)
    ids, mask = torch.arange(3, 13).view(2, 5), torch.ones(2, 5, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16):
        scores = model(ids, mask)
    assert scores.dtype == torch.float32
    assert not torch.equal(scores, scores.bfloat16().float())
    save_model(model, tiny_tokenizer(), tmp_path / "out")
    for dtype in ("bfloat16",) if adapter else ("bfloat16", "auto"):
        again = load_reward_model(tmp_path / "out", dtype=dtype, adapter=adapter)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(again(ids, mask), scores), dtype


def test_a_reward_model_on_the_policys_base_scores_in_float32(base: Path, tmp_path: Path) -> None:
    judge = load_reward_model(base, adapter=LoRA(rank=4))
    save_model(judge, tiny_tokenizer(), tmp_path / "judge")
    shared = SharedRewardModel(load_causal_lm(base, adapter=LoRA(rank=4)), str(tmp_path / "judge"))
    ids, mask = torch.arange(3, 13).view(2, 5), torch.ones(2, 5, dtype=torch.long)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        scores, alone = shared(ids, mask), judge(ids, mask)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, alone)


def test_any_classifier_gets_a_head_in_float32(base: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    model = RewardModel(AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.bfloat16))
    assert model.to(torch.bfloat16)(torch.ones(1, 3, dtype=torch.long), torch.ones(1, 3)).dtype == torch.float32
    assert model.classifier.score.weight.dtype == torch.float32


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "qwen2", "qwen3", "gemma"])
def test_rows_of_hundreds_of_tokens_train_under_autocast_on_a_cpu(family: str) -> None:
    """Long rows take another path through attention there; rotary positions leave queries in float32."""
    model = tiny_model(family, positions=512)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 29, (3, 500), generator=generator)
    flags = torch.arange(500) > torch.tensor([[10], [10], [450]])
    flags[1, 60:] = False
    exact = predict_tokens(model, ids, flags).logprobs
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        logprobs = predict_tokens(model, ids, flags).logprobs
        with torch.no_grad():
            assert torch.equal(predict_tokens(model, ids, flags).logprobs, logprobs)
    logprobs.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert float((logprobs - exact).abs().mean()) < 0.1


class Casts(TorchDispatchMode):
    """Counts casts to bfloat16 of tensors of at least this many numbers."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.least, self.count = least, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.dtype == torch.bfloat16 and out.numel() >= self.least:
            whole = [x for x in args if isinstance(x, torch.Tensor) and x.dtype == torch.float32]
            self.count += bool(whole) and whole[0].shape == out.shape
        return out


@pytest.mark.parametrize("adapter", [None, LoRA(rank=4)], ids=["full", "lora"])
def test_decoding_casts_every_weight_once_and_draws_the_same(
    adapter: LoRA | None, base: Path, monkeypatch: Any
) -> None:
    model = load_causal_lm(base, adapter=adapter)
    prompts, settings = [[3, 4, 5], [6, 7]], SamplingSettings(max_new_tokens=12)
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.weight.numel() >= 64 * 29]
    parameters = dict(model.named_parameters())

    def generate() -> tuple[Any, int]:
        engine = NativeEngine(0, [1])
        engine.sync(model)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False), Casts(64 * 29) as casts:
            return engine.generate(prompts, settings, seeded_generator("cpu", "x")), casts.count

    held, casts = generate()
    assert casts == len(linear)
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    monkeypatch.setattr("rlhf_lightning.rollout.native.held_casts", lambda model: torch.no_grad())
    plain, more = generate()
    assert more > casts
    assert torch.equal(held.tokens, plain.tokens)
    assert torch.equal(held.logprobs, plain.logprobs)


@pytest.mark.parametrize(
    ("precision", "dtype", "adapter", "message"),
    [
        ("16-true", "float32", None, "trainer.precision: found .16-true.*bf16-true"),
        ("32-true", "float16", None, "model.dtype: float16 weights cannot be trained"),
        ("32-true", "float16", LoRA(rank=4), "model.dtype: float16 weights need trainer.precision=16-mixed"),
        ("bf16-mixed", "float16", LoRA(rank=4), "model.dtype: float16 weights need trainer.precision=16-mixed"),
    ],
)
def test_what_float16_cannot_do_is_refused(
    precision: Any, dtype: Any, adapter: LoRA | None, message: str, base: Path, tmp_path: Path
) -> None:
    module, data = sft(partial(load_causal_lm, base, dtype=dtype, adapter=adapter))
    with pytest.raises(UserError, match=message) as refusal:
        trainer(tmp_path, precision=precision).fit(module, data)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "64-true"])
def test_any_type_of_weights_under_any_precision_starts_at_its_reference(
    precision: Any, dtype: Any, base: Path, tmp_path: Path
) -> None:
    still = partial(torch.optim.SGD, lr=0.0)
    module, data = dpo(partial(load_causal_lm, base, dtype=dtype), optimizer=still)
    fit = trainer(tmp_path, precision=precision)
    fit.fit(module, data)
    assert float(fit.callback_metrics["train/loss"]) == pytest.approx(math.log(2), abs=1e-7)
    assert {p.dtype for p in module.reference._model.parameters()} == {p.dtype for p in module.model.parameters()}


def long_pairs(n: int = 16) -> list[dict[str, str]]:
    """Return rows of many lengths, so that batches have many shapes."""
    numbers = torch.randint(0, 26, (n, 3, 40), generator=torch.Generator().manual_seed(0)).tolist()
    texts = [[" ".join(WORDS[k] for k in ids[: 3 + ids[0]]) for ids in row] for row in numbers]
    return [dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in texts]


class Losses(L.Callback):
    """Records the loss of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"]))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_a_precomputed_reference_is_that_of_the_first_epoch(precision: Any, tmp_path: Path) -> None:
    """In half precision a row's numbers depend on the shape of its batch."""
    tokenizer, still = tiny_tokenizer(), partial(torch.optim.SGD, lr=0.0)
    module = DPOModule(partial(tiny_model, hidden=256), tokenizer, still, precompute_reference=True)
    watch = Losses()
    data = PreferenceDataModule(tokenizer, long_pairs(), batch_size=4)
    trainer(tmp_path / "new", precision=precision, callbacks=[watch]).fit(module, data)
    assert {f"{loss:.7f}" for loss in watch.losses} == {"0.6931472"}


def test_a_stored_reference_is_of_one_precision(base: Path, tmp_path: Path) -> None:
    still = partial(torch.optim.SGD, lr=0.0)
    for precision in ("32-true", "bf16-mixed", "32-true"):
        module, data = dpo(partial(load_causal_lm, base), optimizer=still, precompute_reference=True)
        fit = trainer(tmp_path, precision=precision)
        fit.fit(module, data)
        assert float(fit.callback_metrics["train/loss"]) == pytest.approx(math.log(2), abs=1e-7)


def test_autocast_leaves_long_rows_to_torch() -> None:
    x = torch.randn(1, 2, 500, 8)
    assert row_attention.suits(x, x, x, [row_attention.Row(0, 500)], 500**2, 0.0)
    assert not row_attention.suits(x, x, x.bfloat16(), [row_attention.Row(0, 500)], 500**2, 0.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert not row_attention.suits(x, x, x, [row_attention.Row(0, 500)], 500**2, 0.0)


@pytest.mark.parametrize(
    ("dtype", "precision", "adapter", "rate", "warns"),
    [
        ("float32", "bf16-true", None, 1e-5, True),
        ("bfloat16", "32-true", None, 1e-5, True),
        ("bfloat16", "bf16-mixed", None, 1e-5, True),
        ("float32", "bf16-true", None, 1e-1, False),
        ("float32", "bf16-mixed", None, 1e-5, False),
        ("float32", "bf16-true", LoRA(rank=4), 1e-5, False),
    ],
)
def test_updates_that_16_bit_weights_do_not_take_are_told(
    dtype: Any, precision: Any, adapter: LoRA | None, rate: float, warns: bool, base: Path, tmp_path: Path, caplog: Any
) -> None:
    module, data = sft(partial(load_causal_lm, base, dtype=dtype, adapter=adapter))
    module.make_optimizer = partial(torch.optim.AdamW, lr=rate)
    module.configure_model()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    fit = trainer(tmp_path, precision=precision, max_steps=1)
    with caplog.at_level("WARNING", logger="rlhf_lightning"):
        fit.fit(module, data)
    told = [record.getMessage() for record in caplog.records if "optimizer.lr" in record.getMessage()]
    assert bool(told) == warns
    if warns:  # the warning matches what the step did
        share = float(told[0].split(" changes ")[1].split("%")[0]) / 100
        trained = {n: p for n, p in module.named_parameters() if p.requires_grad and p.grad is None}
        changed = sum(int((p != before[n].to(p.dtype)).sum()) for n, p in trained.items() if "embed" not in n)
        count = sum(p.numel() for n, p in trained.items() if "embed" not in n)
        assert share == pytest.approx(changed / count, abs=0.02)
        assert "trainer.precision=bf16-mixed" in told[0]


def test_the_precisions_that_configs_allow_are_those_that_modules_take() -> None:
    from typing import get_args, get_type_hints

    from rlhf_lightning.source.sections import section_type

    trainer = section_type("lightning.Trainer", "trainer")
    assert set(get_args(get_type_hints(trainer)["precision"])) == set(WEIGHTS)
