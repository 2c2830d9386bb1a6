from __future__ import annotations

import pytest

from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.commands.train import check
from rlhf_lightning.config.schema import Evaluate, Pipeline, Train
from rlhf_lightning.config.validation import validate
from rlhf_lightning.errors import UserError


def compose_and_check(overrides: list[str], top: str, schema: object) -> None:
    config = compose_config(top, overrides)
    if top == "train":
        check(config)
    else:
        validate(config, schema)


def complaint(*overrides: str, top: str = "train", schema: object = Train) -> str:
    """Return the one line with which these overrides of the PPO demo (or of another top level) are refused."""
    with pytest.raises(UserError) as error:
        compose_and_check([*(["experiment=ppo_demo"] if top == "train" else []), *overrides], top, schema)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        # unknown keys, as Hydra finds them
        ("optimizer.lrr=1", "optimizer.lrr: no such key; did you mean optimizer.lr?"),
        ("algorithm.kl.tarjet=3", "algorithm.kl.tarjet: no such key; did you mean algorithm.kl.target?"),
        ("kl.target=3", "kl.target: no such key; did you mean algorithm.kl.target?"),
        ("lr=3", "lr: no such key; did you mean optimizer.lr?"),
        ("sead=3", "sead: no such key; did you mean seed?"),
        ("learning_rate=3", "learning_rate: no such key; did you mean optimizer.lr?"),
        ("~optimizer.lrr", "optimizer.lrr: no such key; did you mean optimizer.lr?"),
        # and as only the schema finds them
        ("+optimizer.lrr=1", "optimizer.lrr: no such key; did you mean optimizer.lr?"),
        ("+trainer.max_epoch=1", "trainer.max_epoch: no such key; did you mean trainer.max_epochs?"),
        ("+algorithm.kl.targget=1", "algorithm.kl.targget: no such key; did you mean algorithm.kl.target?"),
        # options of groups
        ("experiment=ppo_dmo", "experiment=ppo_dmo: no such option; did you mean experiment=ppo_demo?"),
        ("optimizer=adamx", "optimizer=adamx: no such option; did you mean optimizer=adam"),
        ("experimnt=ppo_demo", "experimnt: no such key; did you mean experiment?"),
        # types
        ("trainer.max_epochs=many", 'trainer.max_epochs: found "many"; must be a whole number >= -1'),
        ("trainer.max_epochs=1.5", "trainer.max_epochs: found 1.5; must be a whole number"),
        ("optimizer.lr=fast", 'optimizer.lr: found "fast"; must be a number >= 0'),
        ("optimizer.lr=nan", "optimizer.lr: found nan; must be a number in [0, 1e12]"),
        ("optimizer.betas=0.9", "optimizer.betas: found 0.9; must be a list of"),
        ("seed=true", "seed: found true; must be a whole number"),
        ("algorithm.whiten_advantages=1", "algorithm.whiten_advantages: found 1; must be true | false"),
        ("algorithm.kl=3", "algorithm.kl: found 3; must be a section of keys"),
        # ranges
        ("algorithm.gamma=1.1", "algorithm.gamma: found 1.1; must be a number in [0, 1]"),
        ("algorithm.clip_range=0", "algorithm.clip_range: found 0; must be a number in (0, 1)"),
        ("algorithm.kl.target=-3", "algorithm.kl.target: found -3; must be a number > 0"),
        ("algorithm.ppo_epochs=0", "algorithm.ppo_epochs: found 0; must be a whole number >= 1"),
        (
            "algorithm.tokens_per_microbatch=0",
            "algorithm.tokens_per_microbatch: found 0; must be a whole number >= 1 or null",
        ),
        (
            "algorithm.tokens_per_microbatch=few",
            'algorithm.tokens_per_microbatch: found "few"; must be a whole number',
        ),
        ("rollout.temperature=0", "rollout.temperature: found 0; must be a number >= 1e-05"),
        ("trainer.devices=0", "trainer.devices: found 0; must be a whole number >= 1 or auto"),
        # choices
        ("algorithm.kl.kind=adaptiv", 'algorithm.kl.kind: found "adaptiv"; must be adaptive | multiplicative'),
        ("algorithm.kl.kind=k3", "algorithm.kl.kind: k3 is an estimator: algorithm.kl.estimator=k3"),
        (
            "algorithm.kl.estimator=adaptive",
            "algorithm.kl.estimator: adaptive is a controller: algorithm.kl.kind=adaptive",
        ),
        ("trainer.precision=bf16", 'trainer.precision: found "bf16"; must be 32-true | bf16-mixed'),
        ("algorithm._target_=rlhf_lightning.algorithms.PPO", "did you mean rlhf_lightning.algorithms.PPOModule?"),
        # sections that do not go together
        (
            "data=sft data.train=x",
            "data: PPOModule learns from prompts, and SFTDataModule gives texts and completions; choose data=prompts",
        ),
        ("reward.function=my.fn", "reward.function and reward.model: only one source of scores"),
        ("reward.model=null", "reward: no source of scores; give one of reward.function=... | reward.functions=..."),
        ("reward.model=null reward.function=fn", 'reward.function: found "fn"; must be a dotted path'),
        ("rollout.batch_size=100 algorithm.num_minibatches=8", "rollout.batch_size: found 100; must be a multiple of"),
        ("algorithm.kl.placement=loss algorithm.kl.estimator=k1", "algorithm.kl.estimator: found k1"),
        ("algorithm.old_logprobs=engine algorithm.importance_cap=2.0", "algorithm.importance_cap: found 2.0 with"),
        ("algorithm.ptx.coef=1", "algorithm.ptx.data: missing"),
        # Hydra's grammar and interpolations
        ("optimizer.lr", "optimizer.lr: cannot be read as key=value"),
        ("optimizer.lr=[1", "optimizer.lr=[1: cannot be read as key=value"),
        ("optimizer.lr=${nothing}", "optimizer.lr: Interpolation key 'nothing' not found"),
        ("+optimizer.lr=1", "optimizer.lr: exists already; set it without the plus"),
    ],
)
def test_wrong_input_is_one_line_with_the_key_the_finding_and_what_is_allowed(override, expected):
    assert expected in complaint(*override.split())


def test_missing_values_are_told_together():
    text = complaint("experiment=sft")
    assert text == "model.path, data.train: missing; give model.path=... data.train=..."


def test_a_key_of_an_empty_section_names_the_options_that_fill_it():
    with pytest.raises(UserError, match="the section reward is empty; choose it with reward=default"):
        compose_config("train", ["experiment=sft_demo", "reward.function=my.fn"])


def test_several_problems_show_the_first_and_count_the_others():
    assert complaint("optimizer.lr=-1", "algorithm.gamma=2").endswith("(and 1 more)")


def test_sections_of_classes_outside_the_project_are_left_free():
    config = compose_config(
        "train",
        [
            "experiment=ppo_demo",
            "algorithm._target_=my_package.MyPPO",
            "+algorithm.bonus=0.5",
            "callbacks.progress=null",
        ],
    )
    validate(config, Train)


def test_inside_a_free_section_our_classes_are_still_checked():
    assert "algorithm.kl.coef: found -1" in complaint("algorithm._target_=my_package.MyPPO", "algorithm.kl.coef=-1")


def test_stages_of_a_pipeline_are_checked():
    text = complaint("pipeline=demo", "+stages.sft.modl_from=x", top="pipeline", schema=Pipeline)
    assert text == "stages.sft.modl_from: no such key; did you mean stages.sft.model_from?"


def test_policies_of_an_evaluation_must_be_given():
    assert (
        complaint("prompts=x", "baseline=a", top="evaluate", schema=Evaluate) == "policies: missing; give policies=..."
    )


def test_a_users_own_config_folder_adds_options(tmp_path):
    (tmp_path / "algorithm").mkdir()
    (tmp_path / "algorithm" / "mine.yaml").write_text("_target_: my_package.Mine\nstrength: 2\n")
    config = compose_config("train", ["algorithm=mine"], str(tmp_path))
    assert config["algorithm"] == {"_target_": "my_package.Mine", "strength": 2}


def test_a_misspelt_option_is_matched_against_the_users_options_too(tmp_path):
    (tmp_path / "algorithm").mkdir()
    (tmp_path / "algorithm" / "mine.yaml").write_text("_target_: my_package.Mine\n")
    with pytest.raises(UserError, match="did you mean algorithm=mine"):
        compose_config("train", ["algorithm=mne"], str(tmp_path))


def test_a_config_folder_that_does_not_exist_is_an_error():
    with pytest.raises(UserError, match="--config-dir: nowhere is not a folder"):
        compose_config("train", [], "nowhere")


def test_whole_bounds_have_all_their_digits():
    assert complaint("seed=4294967296") == ("seed: found 4294967296; must be a whole number from 0 to 4294967295")


def test_of_many_keys_a_few_are_named():
    text = complaint("+trainer.zzzzqqq=1")
    assert text.startswith(
        "trainer.zzzzqqq: no such key; allowed: trainer.accelerator, trainer.strategy, trainer.devices, "
    )
    assert text.count(", trainer.") == 7
    assert text.endswith(" more; the same command with --cfg job shows them")
    assert complaint("+logger.zzzzqqq=1").count("more;") <= 1


@pytest.mark.parametrize("time", ["bogus", "01:00:00", "1:2:3:4", "00:00:00:10s"])
def test_a_time_that_lightning_cannot_read_is_refused(time):
    assert complaint(f"trainer.max_time='{time}'").startswith(f'trainer.max_time: found "{time}"; must be a text like')


def test_a_time_may_be_given_in_parts():
    text = complaint("trainer.max_time={minuts: 3}")
    assert text.startswith("trainer.max_time: found a section; must be ")
    assert text.endswith("or a section of weeks | days | hours | minutes | seconds or null")
    validate(compose_config("train", ["experiment=sft_demo", "trainer.max_time={minutes: 3, seconds: 2.5}"]), Train)
