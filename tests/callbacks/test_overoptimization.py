"""Held-out scorers: applied to the validation's own responses, logged, warned about, able to stop, resumed bitwise."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from rlhf_lightning.callbacks import OverOptimization, ReproducibleResume, ResumableCheckpoint
from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.commands.train import check
from rlhf_lightning.config.inputs import check_inputs
from rlhf_lightning.data import PromptDataModule
from rlhf_lightning.errors import UserError
from rlhf_lightning.models import fingerprint
from rlhf_lightning.rollout import RolloutSettings
from tests.algorithms.conftest import count_early, ppo, sft, trainer
from tests.commands.runs import write_model
from tests.judges import write_judge
from tests.tiny import tiny_tokenizer

ROWS = [{"prompt": f"{a} {b}"} for a in "bcdef" for b in "ghij"]
HELD_OUT = [{"prompt": f"{a} {b}", "kind": "unsafe" if a == "k" else "question"} for a in "klm" for b in "nop"]


class Falling:
    """Gives every response of the n-th validation about the n-th score, and records what it was asked."""

    def __init__(self, *scores: float, batches: int = 2) -> None:
        self.scores, self.batches, self.asked = scores, batches, []

    def __call__(self, prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
        self.asked.append((prompts, responses, columns))
        return [self.scores[(len(self.asked) - 1) // self.batches]] * len(responses)


def module_and_data(**kwargs: Any) -> tuple[Any, PromptDataModule]:
    settings = {"rollout": RolloutSettings(max_new_tokens=6, batch_size=8), "ppo_epochs": 1, "num_minibatches": 2}
    module, _ = ppo(**{**settings, **kwargs})
    return module, PromptDataModule(tiny_tokenizer(), ROWS, HELD_OUT)


def fit(folder: Path, *callbacks: L.Callback, ckpt: str | None = None, **kwargs: Any) -> Any:
    module, data = module_and_data()
    saves = any(isinstance(each, ModelCheckpoint) for each in callbacks)
    made = trainer(folder, callbacks=[*callbacks], enable_checkpointing=saves, **kwargs)
    made.fit(module, datamodule=data, ckpt_path=ckpt)
    return made


def test_every_scorer_sees_the_responses_of_the_validation_and_its_mean_is_logged(tmp_path: Path) -> None:
    longest = lambda prompts, responses, **columns: [float(len(each)) for each in responses]  # noqa: E731
    first = Falling(0.25)
    made = fit(tmp_path, OverOptimization({"first": first, "same": count_early, "long": longest}), max_epochs=1)
    logged = {name: float(value) for name, value in made.callback_metrics.items()}
    prompts = [prompt for asked, _, _ in first.asked for prompt in asked]
    assert sorted(prompts) == sorted(str(row["prompt"]) for row in HELD_OUT)
    assert logged["val/held_out"] == logged["val/held_out/first"] == 0.25
    assert logged["val/held_out/same"] == pytest.approx(
        logged["val/scores"]
    )  # the reward itself, on the same responses
    texts = [text for _, responses, _ in first.asked for text in responses]
    assert logged["val/held_out/long"] == pytest.approx(sum(map(len, texts)) / 9)
    words = [word for text in texts for word in text.lower().split()]
    assert logged["val/distinct_1"] == pytest.approx(len(set(words)) / len(words))
    assert {"val/repetition", "val/distinct_2", "val/refusal_rate", "val/unsafe_refusal_rate"} <= logged.keys()


def test_training_is_bitwise_that_without_it(tmp_path: Path) -> None:
    ends = [fit(tmp_path, *callbacks, max_epochs=2) for callbacks in ([], [OverOptimization({"one": count_early})])]
    with_it, without = (fingerprint(each.lightning_module.policy) for each in ends)
    assert with_it == without


def test_it_warns_once_with_the_reason_and_stops_after_that_iteration(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scores = (0.0, 1.0, 2.0, 1.5, 1.0)
    save = ResumableCheckpoint(tmp_path, "{epoch}", monitor="val/held_out", mode="max", save_top_k=1, save_last=True)
    with caplog.at_level(logging.WARNING, logger="rlhf_lightning"):
        watch = OverOptimization({"gold": Falling(*scores)}, window=1, stop=True)
        made = fit(tmp_path, watch, save, max_epochs=5)
    said = [each.getMessage() for each in caplog.records if "val/held_out" in each.getMessage()]
    assert len(said) == 1 and "(gold) fell from 2 after iteration 3 to 1.5 after iteration 4, 25% of what" in said[0]
    assert "epoch=2.ckpt" in said[0] and "training stops here" in said[0]
    assert made.current_epoch == 4 and Path(save.best_model_path).name == "epoch=2.ckpt"
    assert (tmp_path / "last.ckpt").exists()


def test_unless_asked_to_it_does_not_stop_and_warns_again_only_after_a_recovery(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="rlhf_lightning"):
        made = fit(tmp_path, OverOptimization({"gold": Falling(0, 2, 1, 0.5, 2.5, 1)}, window=1), max_epochs=6)
    assert made.current_epoch == 6
    assert sum("val/held_out" in each.getMessage() for each in caplog.records) == 2


def test_a_resumed_run_stops_where_the_uninterrupted_one_does(tmp_path: Path) -> None:
    scores = (0.0, 2.0, 2.5, 2.4, 1.0, 0.0)

    def watch(first: int = 0) -> OverOptimization:
        return OverOptimization({"gold": Falling(*scores[first:])}, window=2, stop=True)

    whole = fit(tmp_path / "whole", watched := watch(), ReproducibleResume(), max_epochs=6)
    save = ModelCheckpoint(tmp_path / "cut", filename="cut", every_n_epochs=3)
    fit(tmp_path / "cut", watch(), save, ReproducibleResume(), max_epochs=3)
    again = watch(3)
    rest = fit(tmp_path / "cut", again, ReproducibleResume(), max_epochs=6, ckpt=str(tmp_path / "cut/cut.ckpt"))
    assert whole.current_epoch == rest.current_epoch == 5
    assert again.state_dict() == watched.state_dict()
    assert fingerprint(whole.lightning_module.policy) == fingerprint(rest.lightning_module.policy)
    json.dumps(again.state_dict())


def test_a_judge_rates_the_responses_and_a_resumed_run_goes_on_with_it(tmp_path: Path) -> None:
    settings: Any = {"model": str(write_judge(tmp_path / "judge")), "cache": str(tmp_path / "answers.db")}
    watched = OverOptimization({"judge": {"judge": settings}})
    whole = fit(tmp_path / "whole", watched, ReproducibleResume(), max_epochs=2)
    judged = float(whole.callback_metrics["val/held_out/judge"])
    assert -1 <= judged <= 1 and judged == pytest.approx(watched.course[-1].held_out)
    save = ModelCheckpoint(tmp_path / "cut", filename="cut", every_n_epochs=1)
    fit(tmp_path / "cut", OverOptimization({"judge": {"judge": settings}}), save, ReproducibleResume(), max_epochs=1)
    again = OverOptimization({"judge": {"judge": settings}})
    fit(tmp_path / "cut", again, ReproducibleResume(), max_epochs=2, ckpt=str(tmp_path / "cut/cut.ckpt"))
    assert again.state_dict() == watched.state_dict()
    with pytest.raises(UserError, match=r"^callbacks\.overoptimization\.scorers\.j\.judge\.model: .*nowhere"):
        OverOptimization({"j": {"judge": {"model": str(tmp_path / "nowhere")}}})


def test_what_it_cannot_do_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"callbacks\.overoptimization\.scorers: none given"):
        OverOptimization({})
    with pytest.raises(UserError, match=r"scorers\.a: no source of scores; give one of .*scorers\.a\.function"):
        OverOptimization({"a": {}})
    with pytest.raises(UserError, match=r"callbacks\.overoptimization\.tolerance: found 2; must be"):
        OverOptimization({"a": count_early}, tolerance=2)
    with pytest.raises(UserError, match=r"scorers\.a\.function: cannot import nothing"):
        OverOptimization({"a": {"function": "nothing.here"}})
    module, data = sft()
    with pytest.raises(UserError, match="there are no held-out prompts"):
        trainer(tmp_path, callbacks=[OverOptimization({"a": count_early})]).fit(module, datamodule=data)
    module, data = module_and_data()
    validate = module.validation_step
    module.validation_step = lambda batch, batch_idx: [validate(batch, batch_idx), None][1]
    with pytest.raises(UserError, match="does not return what it sampled"):
        trainer(tmp_path, callbacks=[OverOptimization({"a": count_early})]).fit(module, datamodule=data)


GOLD = "rlhf_lightning.simulation.gold_reward"
SCORERS = "callbacks.overoptimization.scorers="
BARE = [
    *("experiment=grpo", "callbacks=overoptimization", "model.path=x", "data.train=x.jsonl", "data.val_fraction=0.1"),
    "reward.function=mine.reward",
]
RUN = [*BARE, f"{SCORERS}{{gold: {{function: {GOLD}}}}}"]


def test_the_shipped_config_is_valid_and_keeps_the_best_by_the_first_scorer() -> None:
    config = compose_config("train", RUN)
    check(config)
    assert config["callbacks"]["checkpoint"]["monitor"] == "val/held_out"
    check(compose_config("train", [*RUN, "callbacks.checkpoint.monitor=val/held_out/gold"]))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["data.val_fraction=0"], r"^callbacks\.\w+\.(_target_|monitor): .*nothing is validated"),
        ([f"reward.function={GOLD}"], r"^callbacks\.overoptimization\.scorers: .*the reward that is trained on"),
        ([f"{SCORERS}{{a: {{}}}}"], r"^callbacks\.overoptimization\.scorers\.a: no source"),
        (
            [f"{SCORERS}{{a: {{judge: {{by: reasons}}}}}}"],
            r"^callbacks\.overoptimization\.scorers\.a\.judge\.model: missing",
        ),
        ([f"{SCORERS}{{a: {{judge: {{modle: x}}}}}}"], r"scorers\.a\.judge\.modle: no such key; did you mean"),
        ([f"{SCORERS}{{a: {{judge: {{model: x, parallel: 2}}}}}}"], r"scorers\.a\.judge\.parallel: .*no effect"),
        (
            [f"{SCORERS}{{a: {{judge: {{model: x}}, function: {GOLD}}}}}"],
            r"scorers\.a\.function and .*a\.judge: only one",
        ),
        (
            [f"{SCORERS}{{a: {{judge: {{model: x}}, standardize: true}}}}"],
            r"scorers\.a\.standardize: only a reward model",
        ),
        (
            [
                f"{SCORERS}{{a: {{judge: {{model: x}}}}}}",
                "reward.function=null",
                "+reward.judge={model: x, by: reasons}",
            ],
            r"^callbacks\.overoptimization\.scorers: .*the reward that is trained on",
        ),
        ([f"{SCORERS}{{a: {{mode: x}}}}"], r"scorers\.a\.mode: no such key; did you mean"),
        (["callbacks.overoptimization.tolerance=1.5"], r"^callbacks\.overoptimization\.tolerance: found 1\.5"),
        (["callbacks.checkpoint.monitor=val/held_out/silver"], r"monitor: found .*did you mean val/held_out/gold"),
    ],
)
def test_a_config_that_cannot_be_is_refused_before_anything_is_loaded(words: list[str], line: str) -> None:
    with pytest.raises(UserError, match=line):
        check(compose_config("train", [*(BARE if words[0].startswith(SCORERS) else RUN), *words]))


def test_a_scorer_that_is_not_there_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").touch()
    there = [*BARE, "model.path=gpt2", f"data.train={tmp_path / 'x.jsonl'}", f"reward.function={GOLD}"]
    with pytest.raises(UserError, match=r"overoptimization\.scorers\.a\.function: cannot import"):
        check_inputs(compose_config("train", [*there, SCORERS + "{a: {function: rlhf_lightning.errors.nothing}}"]))
    with pytest.raises(UserError, match=r"scorers\.a\.model: /nowhere/at_all does not exist"):
        check_inputs(compose_config("train", [*there, f"{SCORERS}{{a: {{model: /nowhere/at_all}}}}"]))
    with pytest.raises(UserError, match=r"scorers\.a\.judge\.model: /nowhere/at_all does not exist"):
        check_inputs(compose_config("train", [*there, f"{SCORERS}{{a: {{judge: {{model: /nowhere/at_all}}}}}}"]))
    scorer = write_model(tmp_path / "scorer", classifier=True)
    with pytest.raises(UserError, match=r"scorers\.a\.judge\.model: .*scorer is a reward model"):
        check_inputs(compose_config("train", [*there, f"{SCORERS}{{a: {{judge: {{model: {scorer}}}}}}}"]))
    check_inputs(compose_config("train", [*there, f"{SCORERS}{{judge: {{model: {scorer}}}}}"]))  # named so, and none
