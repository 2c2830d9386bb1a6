"""GKD: what is sampled and when, the loss of a step, the teacher that must stay, and what cannot be taught."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from rlhf_lightning.commands import train
from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.config.inputs import check_inputs
from rlhf_lightning.data import SFTDataModule
from rlhf_lightning.errors import UserError
from rlhf_lightning.functional import generalized_jsd
from rlhf_lightning.models import load_causal_lm
from rlhf_lightning.rollout import Generation
from tests.algorithms.conftest import SGD, offline, sft_rows, teacher_folder, trainer
from tests.tiny import tiny_model, tiny_tokenizer


class Echo:
    """An engine whose response is a function of the prompt."""

    def __init__(self) -> None:
        self.calls: list[list[list[int]]] = []

    def sync(self, model: Any) -> None:
        """Nothing to copy."""

    def generate(self, prompts: list[list[int]], settings: Any, generator: Any = None) -> Generation:
        self.calls.append(prompts)
        tokens, mask = torch.zeros(len(prompts), 4, dtype=torch.long), torch.zeros(len(prompts), 4)
        for row, prompt in enumerate(prompts):
            length = 1 + sum(prompt) % 4
            tokens[row, :length] = torch.tensor([3 + sum(prompt) % 7, 9, 4, 1])[-length:]
            mask[row, :length] = 1
        return Generation(tokens, mask, torch.zeros_like(mask), torch.ones(len(prompts), dtype=torch.bool))


class Losses(Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.losses.append(float(outputs["loss"]))


def fit(folder: Path, batch_size: int = 2, accumulate: int = 1, **settings: Any) -> tuple[Any, Any, list[float]]:
    module, data = offline("GKDModule", optimizer=SGD, **settings)
    data.batch_size = batch_size
    watch = Losses()
    run = trainer(folder, accumulate_grad_batches=accumulate, callbacks=[watch], max_epochs=2)
    run.fit(module, datamodule=data)
    return module, run, watch.losses


def weights(module: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters() if p.requires_grad])


@pytest.mark.parametrize("lmbda", [0.0, 1.0])
def test_gradients_do_not_depend_on_how_a_step_is_split(lmbda: float, tmp_path: Path) -> None:
    found = [fit(tmp_path, size, accumulate, lmbda=lmbda, engine=Echo())[0] for size, accumulate in ((8, 1), (1, 8))]
    torch.testing.assert_close(weights(found[0]), weights(found[1]), atol=1e-6, rtol=0)


def test_a_step_is_the_mean_over_rows_of_the_mean_over_their_tokens(tmp_path: Path) -> None:
    engine, settings = Echo(), {"beta": 0.3, "temperature": 0.8}
    module, data = offline(
        "GKDModule", lmbda=1.0, engine=engine, optimizer=partial(torch.optim.SGD, lr=0.0), **settings
    )
    watch = Losses()
    trainer(tmp_path, max_steps=1, callbacks=[watch]).fit(module, datamodule=data)
    (prompts, *_) = engine.calls
    made = engine.generate(prompts, None)
    student, teacher = tiny_model().eval(), load_causal_lm(teacher_folder()).eval()
    rows = []
    for prompt, answer, mask in zip(prompts, made.tokens, made.mask, strict=True):
        ids = torch.tensor([[*prompt, *answer[mask.bool()].tolist()]])
        logits = [model(ids).logits[:, len(prompt) - 1 : -1] for model in (student, teacher)]
        rows.append(generalized_jsd(*logits, torch.ones(1, int(mask.sum())), **settings))
    assert watch.losses[0] == pytest.approx(float(torch.stack(rows).mean()), rel=1e-5)
    given = {" ".join(row["prompt"].split()) for row in sft_rows()}
    assert {tiny_tokenizer().decode(prompt) for call in engine.calls for prompt in call} <= given


def test_the_share_of_sampled_steps_is_lmbda_and_a_step_is_of_one_kind(tmp_path: Path) -> None:
    module, data = offline("GKDModule")
    run = trainer(tmp_path)
    run.fit_loop.setup_data = lambda: None
    module.trainer, kinds = run, Counter()
    run.datamodule = data  # type: ignore[attr-defined]
    for lmbda in (0.0, 0.3, 1.0):
        module.lmbda = lmbda
        for step in range(400):
            run.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = step
            assert module.global_step == step
            assert module.samples() == module.samples()
            kinds[lmbda] += module.samples()
    assert kinds[0.0] == 0
    assert kinds[1.0] == 400
    assert 0.3 * 400 - 4 * 9.2 < kinds[0.3] < 0.3 * 400 + 4 * 9.2  # 4 standard deviations


def test_its_own_answers_are_sampled_again_in_every_step_and_batch(tmp_path: Path) -> None:
    module, data = offline("GKDModule", lmbda=1.0, max_new_tokens=6)
    seen: list[Any] = []
    answered = module.answered
    module.answered = lambda *args: seen.append(answered(*args)) or seen[-1]
    run = trainer(tmp_path, max_epochs=2, accumulate_grad_batches=2)
    run.fit(module, datamodule=data)
    answers = [tuple(ids[flags.bool()].tolist()) for ids, flags in seen]
    assert len(set(answers)) == len(answers)
    assert module.lmbda == 1.0
    assert 0 < float(run.callback_metrics["rollout/response_length"]) <= 6


def test_the_teacher_stays_and_a_run_refuses_another(tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, filename="cut", save_top_k=-1, every_n_train_steps=2)
    module, data = offline("GKDModule", lmbda=0.5)
    module.configure_model()
    before = module.teacher_hash()
    trainer(tmp_path, enable_checkpointing=True, callbacks=[save], max_steps=2).fit(module, datamodule=data)
    assert module.teacher_hash() == before
    assert not module.teacher.model.training
    assert not any(p.requires_grad for p in module.teacher.model.parameters())
    saved = torch.load(tmp_path / "cut.ckpt", weights_only=True)
    assert saved["origin"]["teacher"] == before
    assert not [name for name in saved["state_dict"] if "teacher" in name]
    other = tmp_path / "other"
    tiny_model().save_pretrained(other)
    tiny_tokenizer().save_pretrained(other)
    module, data = offline("GKDModule", teacher=str(other))
    with pytest.raises(UserError, match=r"algorithm\.teacher: the teacher has changed since the run began"):
        trainer(tmp_path, max_steps=4).fit(module, datamodule=data, ckpt_path=tmp_path / "cut.ckpt")


def test_dropout_is_off_in_student_and_teacher(tmp_path: Path) -> None:
    losses = [fit(tmp_path, model=partial(tiny_model, dropout=0.5), lmbda=0.0)[2] for _ in range(2)]
    assert losses[0] == losses[1]


def test_a_student_that_is_its_teacher_has_nothing_to_learn(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    _, _, losses = fit(tmp_path, teacher=str(tmp_path))
    assert max(losses) < 1e-6


def test_a_run_without_a_teacher_is_refused_before_torch_is_needed() -> None:
    with pytest.raises(UserError, match=r"algorithm\.teacher: missing; give a run folder"):
        offline("GKDModule", teacher=None)
    config = compose_config("train", ["experiment=gkd", "model.path=gpt2", "data.train=org/name"])
    train.check(config)
    with pytest.raises(UserError, match=r"algorithm\.teacher: missing; give a run folder"):
        check_inputs(config)
    config["algorithm"]["teacher"] = "no/such/folder"
    with pytest.raises(UserError, match=r"algorithm\.teacher: no/such/folder does not exist"):
        check_inputs(config)


def test_a_teacher_with_another_vocabulary_is_refused(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer(words=[*"zyxwvutsrqponmlkjihgfedcba"]).save_pretrained(tmp_path)
    module, _ = offline("GKDModule", teacher=str(tmp_path))
    with pytest.raises(UserError, match=r"algorithm\.teacher: the vocabulary of .* is not the student's"):
        module.configure_model()


def test_a_teacher_with_a_padded_embedding_is_compared_on_what_both_have(tmp_path: Path) -> None:
    model = tiny_model()
    model.resize_token_embeddings(40)
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    _, _, losses = fit(tmp_path, teacher=str(tmp_path), lmbda=0.0)
    assert max(losses) < 1e-6


def test_rows_without_a_prompt_and_answers_without_room_are_refused(tmp_path: Path) -> None:
    module, _ = offline("GKDModule")
    data = SFTDataModule(tiny_tokenizer(), sft_rows(), loss_on="all")
    with pytest.raises(UserError, match=r"data\.loss_on: found all, so rows do not say which part is the prompt"):
        trainer(tmp_path).fit(module, datamodule=data)
    module, data = offline("GKDModule", max_new_tokens=126)
    with pytest.raises(UserError, match=r"algorithm\.max_new_tokens: found 126, and the longest prompt has 4 tokens"):
        trainer(tmp_path).fit(module, datamodule=data)
