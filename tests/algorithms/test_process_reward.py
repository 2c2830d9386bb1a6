"""A process reward model: what it learns, how it is stored, and what it says of a policy's steps."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint

from rlhf_lightning.algorithms import KLPenalty, ProcessRewardModule
from rlhf_lightning.callbacks import ReproducibleResume
from rlhf_lightning.data import BatchLoader, PromptRow
from rlhf_lightning.data.steps import collate_steps
from rlhf_lightning.errors import UserError
from rlhf_lightning.models import (
    NF4,
    LoRA,
    fingerprint,
    load_process_reward_model,
    load_process_scorer,
    load_reward_model,
    load_scorer,
    step_separator,
)
from rlhf_lightning.rewards import FunctionReward, ProcessReward, StepwiseReward, make_reward, sample_scores
from rlhf_lightning.rewards.steps import split_steps, step_ends
from tests.algorithms.conftest import SEPARATOR, SGD, ppo, process, step_rows, trainer
from tests.algorithms.test_ppo import run
from tests.subwords import subword_tokenizer
from tests.tiny import tiny_tokenizer, write_reward_model


def weights(module: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters() if p.requires_grad])


def test_the_loss_is_the_cross_entropy_at_the_ends_of_steps(tmp_path: Path) -> None:
    module, data = process(tmp_path)
    data.setup("fit")
    module.configure_model()
    batch = next(iter(data.train_dataloader()))
    classifier = module.model.classifier
    logits = classifier.score(classifier.model(input_ids=batch.input_ids).last_hidden_state)
    wanted = F.cross_entropy(logits[batch.ends], batch.labels[batch.ends], reduction="sum") / batch.denominator
    torch.testing.assert_close(module.training_step(batch, 0), wanted)


@pytest.mark.parametrize("right", [True, False])
def test_steps_that_all_have_one_label_are_reported(
    right: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{**row, "labels": [right] * len(row["labels"])} for row in step_rows(2)]
    module, data = process(tmp_path, rows=rows)
    with caplog.at_level("WARNING"):
        trainer(tmp_path, max_steps=1).fit(module, datamodule=data)
    assert f"data.train: all 3 steps are {'right' if right else 'wrong'}" in caplog.text


def test_padding_and_later_steps_are_never_read(tmp_path: Path) -> None:
    module, data = process(tmp_path)
    data.setup("fit")
    module.configure_model()
    batch = next(iter(data.train_dataloader()))
    logits, _ = module.steps(batch)
    batch.input_ids = batch.input_ids.masked_fill(batch.attention_mask == 0, 7)
    torch.testing.assert_close(module.steps(batch)[0], logits)
    first = torch.zeros_like(batch.ends).scatter_(1, batch.ends.int().argmax(1, keepdim=True), True)
    changed = batch.input_ids.masked_fill(first.cumsum(1).cumsum(1) > 1, 9)  # everything after the first step
    alone = module.model(changed, first, batch.prompt_lengths)
    torch.testing.assert_close(alone, module.model(batch.input_ids, first, batch.prompt_lengths))


def test_gradients_do_not_depend_on_how_a_step_is_split(tmp_path: Path) -> None:
    found = []
    for batch_size, accumulate in ((8, 1), (1, 8)):
        module, data = process(tmp_path, SGD)
        data.batch_size = batch_size
        watch = trainer(tmp_path, accumulate_grad_batches=accumulate)
        watch.fit(module, datamodule=data)
        found.append((weights(module), {name: float(x) for name, x in watch.callback_metrics.items()}))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-6, rtol=0)
    assert found[0][1] == pytest.approx(found[1][1], abs=1e-5)
    declared = {each for part in ProcessRewardModule.__mro__ for each in vars(part).get("logs", ())}
    assert set(found[0][1]) == declared


def test_a_run_that_is_cut_and_resumed_is_bitwise_the_uninterrupted_one(tmp_path: Path) -> None:
    def train(folder: str, every: int, stop: int, resume: Path | None = None) -> tuple[Any, Any]:
        torch.manual_seed(stop)  # another process has other random states
        module, data = process(tmp_path)
        save = ModelCheckpoint(tmp_path / folder, filename="cut", save_top_k=-1, every_n_train_steps=every)
        settings = {"enable_checkpointing": True, "callbacks": [save, ReproducibleResume()], "max_epochs": 3}
        watch = trainer(tmp_path, max_steps=stop, accumulate_grad_batches=2, log_every_n_steps=4, **settings)
        watch.fit(module, datamodule=data, ckpt_path=resume)
        return module, watch.callback_metrics

    whole, metrics = train("whole", 99, 9)
    train("cut", 5, 5)
    resumed, again = train("rest", 99, 9, tmp_path / "cut/cut.ckpt")
    assert fingerprint(resumed.model) == fingerprint(whole.model)
    assert again == metrics


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a process reward model that tells early letters from late ones, exported."""
    folder = tmp_path_factory.mktemp("process")
    module, data = process(folder, partial(torch.optim.Adam, lr=3e-3), rows=step_rows(320))
    data.val, data.batch_size = step_rows(40, seed=1), 16
    watch = trainer(folder, max_epochs=8)
    watch.fit(module, datamodule=data)
    assert watch.callback_metrics["val/step_accuracy"] > 0.9
    module.export(folder / "model")
    return folder / "model"


def test_the_exported_folder_scores_like_the_module_and_knows_its_separator(trained: Path, tmp_path: Path) -> None:
    assert step_separator(trained) == SEPARATOR
    assert json.loads((trained / "config.json").read_text())["architectures"] == ["LlamaForSequenceClassification"]
    _, data = process(tmp_path)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    again = load_process_reward_model(trained).eval()
    scorer = load_process_scorer(trained).eval()
    arguments = (batch.input_ids, batch.ends, batch.prompt_lengths)
    torch.testing.assert_close(again(*arguments), scorer(*arguments))


def test_a_model_of_answers_and_one_of_steps_are_told_apart(trained: Path, tmp_path: Path) -> None:
    other = write_reward_model(tmp_path / "rm")
    assert step_separator(other) is None
    with pytest.raises(UserError, match=r"rm has 1 labels .*; a process reward model has 2, wrong and right"):
        load_process_scorer(other)
    for load in (load_scorer, load_reward_model):
        with pytest.raises(UserError, match=r"has 2 labels .*; a reward model has exactly one"):
            load(trained)
    with pytest.raises(UserError, match=r"^reward\.aggregation: found min, but .*rm is not a process reward model"):
        make_reward(model=str(other), aggregation="min")
    with pytest.raises(UserError, match=r"^reward\.standardize=true: .* scores steps by probabilities"):
        make_reward(model=str(trained), standardize=True)


def probabilities(folder: Path, prompt: str, steps: list[str]) -> list[float]:
    """Return the probability that each step is right, each read by a plain forward pass over all before it."""
    model, tokenizer, found = load_process_scorer(folder).eval(), tiny_tokenizer(), []
    for k in range(1, len(steps) + 1):
        text = prompt + "".join(step + SEPARATOR for step in steps[:k])
        with torch.no_grad():
            logits = model.classifier(torch.tensor([tokenizer(text)["input_ids"]])).logits
        found.append(float(logits.softmax(1)[0, 1]))
    return found


def test_as_a_reward_it_is_the_worst_step_the_product_or_the_last(trained: Path) -> None:
    steps = [[" a b", " x w", " b d"], [" c"], [" v t", " w s"]]
    prompts, responses = ["a", "b", "c"], [SEPARATOR.join(each) for each in steps]
    alone = [torch.tensor(probabilities(trained, *each)) for each in zip(prompts, steps, strict=True)]
    assert float(alone[0][1]) < 0.5 < float(alone[0][0])
    wanted = {
        "min": [float(each.min()) for each in alone],
        "product": [float(each.prod()) for each in alone],
        "last": [float(each[-1]) for each in alone],
        "steps": [float(each.sum()) for each in alone],
    }
    for how, scores in wanted.items():
        for batch_size in (1, 8):
            reward = make_reward(model=str(trained), aggregation=how, batch_size=batch_size)  # type: ignore[arg-type]
            assert reward(prompts, responses) == pytest.approx(scores, abs=1e-5)
    assert make_reward(model=str(trained))(prompts, responses) == pytest.approx(wanted["min"], abs=1e-5)
    ended = [response + SEPARATOR for response in responses]
    assert make_reward(model=str(trained))(prompts, ended) == pytest.approx(wanted["min"], abs=1e-5)


def test_a_response_without_a_step_scores_zero(trained: Path) -> None:
    for how in ("min", "product", "last", "steps"):
        reward = make_reward(model=str(trained), aggregation=how)  # type: ignore[arg-type]
        assert reward(["a", "a"], ["", SEPARATOR]) == [0.0, 0.0]


def test_a_step_has_its_number_at_its_last_token(trained: Path) -> None:
    tokenizer = tiny_tokenizer()
    rows = [PromptRow(tokenizer("a")["input_ids"], "a", {}) for _ in range(3)]
    texts = ["b c z d z e", "b z", "b c d"]
    responses = [tokenizer(text)["input_ids"] for text in texts]
    responses = [responses[0] + [1], responses[1] + [1], responses[2]]
    reward = ProcessReward(trained, aggregation="steps")
    found = sample_scores(reward, tokenizer, rows, responses, [True, True, False])
    alone = [probabilities(trained, "a", steps) for steps in ([" b c", " d", " e"], [" b"], [" b c d"])]
    places = [[2, 4, 6], [1], [2]]
    for row, scores, ends, response in zip(found, alone, places, responses, strict=True):
        wanted = [0.0] * len(response)
        for end, score in zip(ends, scores, strict=True):
            wanted[end] = score
        assert row == pytest.approx(wanted, abs=1e-5)


def test_the_end_of_a_step_is_the_token_that_completes_its_separator() -> None:
    tokenizer = subword_tokenizer("byte_level", bos=False)
    for separator in ("\n", "\n\n", " two", "."):
        text = separator.join(["one three", " four ", "five", "six"])
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        places = [place for place, _ in split_steps(text, separator)]
        ends = step_ends(tokenizer, [], ids, separator, places)
        for place, end in zip(places[:-1], ends[:-1], strict=True):
            counts = [tokenizer.decode(ids[:n]).count(separator) for n in (end, end + 1)]
            assert counts[0] <= place < counts[1]
        assert ends[-1] == len(ids) - 1


def of_steps(prompts: list[str], responses: list[str], **columns: Any) -> list[list[float]]:
    return [[float(len(step.split())) for _, step in split_steps(text, SEPARATOR)] for text in responses]


def too_few(prompts: list[str], responses: list[str], **columns: Any) -> list[list[float]]:
    return [[1.0] for _ in responses]


def per_response(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
    return [1.0 for _ in responses]


def test_a_function_gives_one_number_per_step() -> None:
    tokenizer = tiny_tokenizer()
    rows = [PromptRow([5], "c", {}, "rows.jsonl", 7)]
    asked = (tokenizer, rows, [[*tokenizer("b c z d z e")["input_ids"], 1]], [True])
    reward = make_reward(function=f"{__name__}.of_steps", step_separator=SEPARATOR)
    assert sample_scores(reward, *asked) == [[0.0, 0.0, 2.0, 0.0, 1.0, 0.0, 1.0]]
    assert reward(["c"], ["b c z d z e"]) == [4.0]
    wrong = StepwiseReward(FunctionReward(f"{__name__}.too_few"), SEPARATOR)
    with pytest.raises(UserError, match=r"returned 1 numbers for response 0, which has 3 steps, .*rows.jsonl, row 7"):
        sample_scores(wrong, *asked)
    with pytest.raises(UserError, match="returned one number per response"):
        sample_scores(StepwiseReward(FunctionReward(f"{__name__}.per_response"), SEPARATOR), *asked)


def test_ppo_credits_each_step_where_it_ends(trained: Path, tmp_path: Path) -> None:
    reward = ProcessReward(trained, aggregation="steps")
    module, data = ppo(reward=reward, kl=KLPenalty(kind="fixed", coef=0.0, target=None, horizon=None))
    run(tmp_path, module, data)
    rollout = module.last_rollout
    z = tiny_tokenizer().convert_tokens_to_ids("z")
    last = torch.arange(rollout.mask.shape[1]) == rollout.mask.sum(1, keepdim=True) - 1
    credited = rollout.rewards > 0
    assert bool(credited.any()) and bool((~credited | last | (rollout.response_ids == z)).all())
    torch.testing.assert_close(rollout.rewards.sum(1), rollout.scores, atol=1e-5, rtol=0)
    assert set(reward.origin()) == {"reward.model", "reward.model.aggregation"}


@pytest.mark.parametrize("kind", ["lora", pytest.param("nf4", marks=pytest.mark.slow)])
def test_an_adapter_learns_and_its_folder_scores_the_same(kind: str, tmp_path: Path) -> None:
    quantization = NF4() if kind == "nf4" else None
    module, data = process(tmp_path, rows=step_rows(20), adapter=LoRA(rank=4), quantization=quantization)
    module.configure_model()
    before = weights(module).clone()
    trainer(tmp_path, max_epochs=2).fit(module, datamodule=data)
    assert not torch.equal(weights(module), before)
    assert all("lora" in name or "score" in name for name, p in module.named_parameters() if p.requires_grad)
    module.export(tmp_path / "model")
    assert step_separator(tmp_path / "model") == SEPARATOR
    batch = next(iter(data.val_dataloader()))
    arguments = (batch.input_ids, batch.ends, batch.prompt_lengths)
    again = load_process_scorer(tmp_path / "model").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(*arguments), module.model.eval()(*arguments), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_half_precision_keeps_the_head_and_the_loss_in_float32(precision: str, tmp_path: Path) -> None:
    module, data = process(tmp_path)
    watch = trainer(tmp_path, precision=precision)
    watch.fit(module, datamodule=data)
    assert module.model.classifier.score.weight.dtype == torch.float32
    assert watch.callback_metrics["train/loss"].isfinite()


def test_two_processes_have_the_gradient_of_one_also_if_one_has_no_row(tmp_path: Path) -> None:
    module, data = process(tmp_path, rows=step_rows(7))
    data.setup("fit")
    module.configure_model()
    module.record = lambda *args: None
    rows = data.train_rows
    weights_of_rows = [row.weight for row in rows]

    def gradients(world: int, batch_size: int) -> list[torch.Tensor]:
        """Return the gradient of each optimiser step, averaged over the processes as DDP does."""
        loaders = [
            BatchLoader(
                *(rows, partial(collate_steps, pad_id=0), batch_size),
                weights=weights_of_rows,
                seed=0,
                shuffle=True,
                rank=rank,
                world_size=world,
            )
            for rank in range(world)
        ]
        found = []
        for batches in zip(*loaders, strict=True):
            module.model.zero_grad()
            for batch in batches:
                (module.training_step(batch, 0) / world).backward()
            found.append(torch.cat([p.grad.flatten() for p in module.model.parameters()]))
        return found

    alone, together = gradients(1, 6), gradients(2, 3)
    assert len(alone) == len(together) == 2  # the second step has one row, and the second process none
    for one, two in zip(alone, together, strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)
