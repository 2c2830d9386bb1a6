"""Properties of every algorithm that learns from given answers, found by declaration."""

from __future__ import annotations

import ast
import inspect
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from rlhf_lightning import algorithms
from rlhf_lightning.callbacks import ReproducibleResume
from rlhf_lightning.models import NF4, LoRA, fingerprint, load_causal_lm
from tests.algorithms.conftest import SGD, of_kind, offline, trainer
from tests.tiny import tiny_model, tiny_tokenizer

NAMES = of_kind("preference", "unpaired", "rewarded")
WITH_REFERENCE = [name for name in NAMES if "reference" in getattr(algorithms, name).roles]
PAIRED = of_kind("preference")
TAUGHT = [name for name in of_kind("sft") if "teacher" in getattr(algorithms, name).roles]
QUICK = ("KTOModule", "ORPOModule", "ILQLModule")  # with and without a reference, and with heads
REST = [name for name in NAMES + TAUGHT if name not in QUICK]
START = {"DPOModule": math.log(2), "KTOModule": 0.5}  # the first loss, where it is known beforehand


def weights(module: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters() if p.requires_grad])


def first_batch(data: Any) -> Any:
    data.setup("fit")
    return next(iter(data.train_dataloader()))


def test_the_algorithms_are_found() -> None:
    assert {"DPOModule", "ORPOModule", "SimPOModule", "CPOModule", "KTOModule", "ILQLModule"} <= set(NAMES)
    assert TAUGHT == ["GKDModule"]
    assert set(WITH_REFERENCE) == {"DPOModule", "KTOModule"}


@pytest.mark.parametrize("name", NAMES + TAUGHT)
def test_a_run_that_is_cut_and_resumed_is_bitwise_the_uninterrupted_one(name: str, tmp_path: Path) -> None:
    """Cut in the middle of epoch 2, between two steps of two batches each."""

    def train(folder: str, every: int, stop: int, resume: Path | None = None) -> tuple[Any, Any]:
        torch.manual_seed(stop)  # another process has other random states
        module, data = offline(name)
        save = ModelCheckpoint(tmp_path / folder, filename="cut", save_top_k=-1, every_n_train_steps=every)
        run = trainer(
            tmp_path,
            enable_checkpointing=True,
            callbacks=[save, ReproducibleResume()],
            max_epochs=3,
            max_steps=stop,
            accumulate_grad_batches=2,
            log_every_n_steps=4,
        )
        run.fit(module, datamodule=data, ckpt_path=resume)
        return module, run.callback_metrics

    whole, metrics = train("whole", 99, 9)
    train("cut", 5, 5)
    resumed, again = train("rest", 99, 9, tmp_path / "cut/cut.ckpt")
    assert fingerprint(resumed) == fingerprint(whole)  # targets that are not trained included
    assert again == metrics


@pytest.mark.parametrize("name", NAMES)
def test_gradients_do_not_depend_on_how_a_step_is_split(name: str, tmp_path: Path) -> None:
    found = []
    for batch_size, accumulate in ((8, 1), (1, 8)):  # 10 rows: the second step has 2
        module, data = offline(name, optimizer=SGD)
        data.batch_size = batch_size
        run = trainer(tmp_path, accumulate_grad_batches=accumulate)
        run.fit(module, datamodule=data)
        found.append((weights(module), {k: float(v) for k, v in run.callback_metrics.items()}))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-6, rtol=0)
    assert found[0][1] == pytest.approx(found[1][1], abs=1e-5)


@pytest.mark.parametrize("weight_kind", ["lora", pytest.param("nf4", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in REST)])
def test_an_adapter_learns_from_the_exact_start(name: str, weight_kind: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    tiny_model(hidden=64).save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    load = partial(load_causal_lm, base, adapter=LoRA(rank=4), quantization=NF4() if weight_kind == "nf4" else None)
    module, data = offline(name, load)
    module.configure_model()
    before = weights(module).clone()
    frozen = module.reference_hash()
    assert (frozen is not None) == ("reference" in module.roles)
    losses: list[float] = []
    module.on_train_batch_end = lambda outputs, *_: losses.append(float(outputs["loss"]))
    trainer(tmp_path, max_epochs=4).fit(module, datamodule=data)
    if name in START:
        assert losses[0] == START[name] or losses[0] == pytest.approx(START[name], abs=1e-7)
    assert sum(losses[-5:]) < sum(losses[:5])
    assert not torch.equal(weights(module), before)
    assert module.reference_hash() == frozen
    assert all("lora" in key or "heads" in key for key, p in module.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("name", NAMES)
def test_padding_is_never_read(name: str) -> None:
    """Rows of a batch that are padded further, with any token, give the same loss and gradient."""
    found = []
    for padding, token in ((0, 0), (7, 0), (7, 5)):
        module, data = offline(name)
        module.configure_model()
        with torch.no_grad():
            for p in module.parameters():
                p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
        module.trainer = trainer(Path("."))
        batch = first_batch(data)
        parts = [batch, *getattr(batch, "mismatched", ())]
        for part in parts:
            ids, mask = part.input_ids, part.completion_mask
            past = mask.eq(0) & mask.cumsum(1).eq(mask.sum(1, keepdim=True))
            if hasattr(part, "rewards"):
                beyond = torch.full((len(ids), padding), float(token))
                part.rewards = torch.cat([part.rewards.masked_fill(past, token), beyond], dim=1)
            part.input_ids = torch.cat([ids.masked_fill(past, token), ids.new_full((len(ids), padding), token)], dim=1)
            for key in ("completion_mask", "attention_mask"):
                if hasattr(part, key):
                    value = getattr(part, key)
                    setattr(part, key, torch.cat([value, value.new_zeros(len(ids), padding)], dim=1))
        loss = module.training_step(batch, 0)
        loss.backward()
        found.append((loss.detach(), torch.cat([p.grad.flatten() for p in module.model.parameters()])))
    for loss, gradient in found[1:]:
        torch.testing.assert_close(loss, found[0][0], atol=1e-5, rtol=0)
        torch.testing.assert_close(gradient, found[0][1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_dropout_is_off(name: str) -> None:
    losses = []
    for _ in range(2):
        module, data = offline(name, partial(tiny_model, dropout=0.5))
        module.configure_model()
        module.train()
        module.trainer = trainer(Path("."))
        losses.append(float(module.training_step(first_batch(data), 0)))
    assert losses[0] == losses[1]
    if name in START:
        assert losses[0] == pytest.approx(START[name], abs=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_logged_is_what_is_declared(name: str, tmp_path: Path) -> None:
    module, data = offline(name)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(module, datamodule=data)
    declared = {each for part in type(module).__mro__ for each in vars(part).get("logs", ())}
    assert set(run.callback_metrics) <= declared
    optional = {"nll/chosen", "val/nll/chosen"} if not getattr(module, "nll_coef", 0) else set()
    assert declared - optional == set(run.callback_metrics)


@pytest.mark.parametrize("name", PAIRED)
def test_logged_probabilities_are_in_the_unit_of_the_loss(name: str) -> None:
    module, data = offline(name)
    module.configure_model()
    batch = first_batch(data)
    module.training_step(batch, 0)
    answers = module.answers(batch)[batch.pairs[:, 0]]
    wanted = answers.mean_logps if name in ("ORPOModule", "SimPOModule") else answers.logps
    assert float(module._recorded()["logps/chosen"].compute()) == pytest.approx(float(wanted.mean()), rel=1e-5)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in WITH_REFERENCE])
def test_without_a_reference_one_network_is_loaded(name: str, tmp_path: Path) -> None:
    loaded: list[int] = []

    def load() -> Any:
        loaded.append(1)
        return tiny_model()

    module, data = offline(name, load)
    trainer(tmp_path).fit(module, datamodule=data)
    assert loaded == [1]
    with pytest.raises(ValueError, match="there is no reference"):
        _ = module.answers(first_batch(data)).log_ratios


@pytest.mark.parametrize("name", NAMES + TAUGHT)
def test_an_algorithm_is_one_short_file(name: str) -> None:
    source = Path(inspect.getfile(getattr(algorithms, name))).read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 120
    assert len([node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]) == 1
