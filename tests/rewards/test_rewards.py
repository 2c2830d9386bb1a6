import json
import random
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.models import load_tokenizer
from rlhf_lightning.rewards import FunctionReward, ModelReward, WeightedSum, check_scores, make_reward
from tests.tiny import WORDS, tiny_model, tiny_tokenizer, write_reward_model


def count_words(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
    return [len(response.split()) for response in responses]


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([1.0], "returned 1 scores for 2 responses"),
        (1.0, "returned float"),
        ([1.0, float("nan")], "score 1 is nan"),
        ([1.0, float("inf")], "score 1 is inf"),
        (["good", 1.0], "score 0 is 'good'"),
        ([None, 1.0], "score 0 is None"),
    ],
)
def test_a_wrong_answer_of_a_reward_is_never_broadcast(scores: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_scores(scores, 2, "mine")


def test_functions_are_found_by_dotted_path_also_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_rewards.py").write_text("def brevity(prompts, responses, **columns):\n    return [-1.0]\n")
    monkeypatch.chdir(tmp_path)
    assert FunctionReward("my_rewards.brevity")(["p"], ["r"]) == [-1.0]
    with pytest.raises(UserError, match="my_rewards has no 'length'"):
        FunctionReward("my_rewards.length")
    with pytest.raises(UserError, match="cannot import nowhere"):
        FunctionReward("nowhere.fn")
    with pytest.raises(UserError, match="not a dotted path"):
        FunctionReward("fn")


def test_a_weighted_sum_keeps_its_parts_by_name() -> None:
    both = WeightedSum(
        {"words": count_words, "one": lambda prompts, responses, **c: [1.0] * len(responses)},
        {"words": 0.5, "one": -2.0},
    )
    assert both(["p", "p"], ["a b", "a b c d"]) == [-1.0, 0.0]
    assert both.parts == {"words": [2.0, 4.0], "one": [1.0, 1.0]}


def test_exactly_one_source_of_scores() -> None:
    with pytest.raises(UserError, match="no source of scores"):
        make_reward()
    with pytest.raises(UserError, match=r"reward\.function and reward\.model"):
        make_reward(function="a.b", model="c")
    path = f"{__name__}.count_words"
    assert make_reward(components={"x": {"function": path, "weight": 3}})(["p"], ["a b"]) == [6.0]


@pytest.fixture
def reward_folder(tmp_path: Path) -> Path:
    return write_reward_model(tmp_path / "rm")


def test_scores_do_not_depend_on_batch_size_or_order(reward_folder: Path) -> None:
    prompts, responses = ["a b", "c", "d e f", "g"], ["h", "i j k", "l m", "n o p q r"]
    one, many = (ModelReward(reward_folder, batch_size=n)(prompts, responses) for n in (1, 4))
    assert one == pytest.approx(many, abs=1e-5)
    assert len(set(one)) == 4
    assert ModelReward(reward_folder)(prompts[::-1], responses[::-1]) == pytest.approx(many[::-1], abs=1e-5)


def test_permuting_the_reward_models_ids_does_not_change_the_reward(reward_folder: Path, tmp_path: Path) -> None:
    model = tiny_model()
    order = list(range(3, 3 + len(WORDS)))
    random.Random(0).shuffle(order)
    old = [0, 1, 2, *order]  # the new id i represents the word that had id old[i]
    model.model.embed_tokens.weight.data = model.model.embed_tokens.weight.data[old]
    write_reward_model(tmp_path / "permuted", model)
    tiny_tokenizer(words=[WORDS[i - 3] for i in order]).save_pretrained(tmp_path / "permuted")
    assert load_tokenizer(tmp_path / "permuted").get_vocab() != load_tokenizer(reward_folder).get_vocab()
    texts = (["a b", "c"], ["d e", "f g h"])
    assert ModelReward(tmp_path / "permuted")(*texts) == pytest.approx(ModelReward(reward_folder)(*texts), abs=1e-5)


def test_a_response_that_was_cut_off_is_scored_without_an_eos(reward_folder: Path) -> None:
    reward = ModelReward(reward_folder)
    ended, cut = reward(["a", "a"], ["b c", "b c"], ended=[True, False])
    assert ended != pytest.approx(cut)


def test_pad_equal_to_eos_does_not_change_a_score(tmp_path: Path) -> None:
    scores = []
    for pad_is_eos in (False, True):
        folder = tmp_path / str(pad_is_eos)
        write_reward_model(folder, pad_is_eos=pad_is_eos)
        scores.append(ModelReward(folder)(["a", "b c"], ["d", "e f g h"]))
    assert scores[0] == scores[1]


def carry(folder: Path, **moments: float) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **moments}))


def test_a_standardised_reward_is_in_units_of_the_scores_the_model_carries(reward_folder: Path) -> None:
    carry(reward_folder, score_mean=0.5, score_std=4.0)
    raw = make_reward(model=str(reward_folder))(["a", "b"], ["c d", "e"])
    alone = make_reward(model=str(reward_folder), standardize=True)(["a", "b"], ["c d", "e"])
    part = {"model": str(reward_folder), "standardize": True}
    assert alone == pytest.approx([(score - 0.5) / 4.0 for score in raw])
    assert make_reward(components={"x": part})(["a", "b"], ["c d", "e"]) == alone


def test_what_carries_no_moments_cannot_be_standardised(reward_folder: Path) -> None:
    with pytest.raises(UserError, match=r"rm has no score_mean and score_std; train it with held-out pairs"):
        ModelReward(reward_folder, standardize=True)
    carry(reward_folder, score_mean=0.5, score_std=0.0)
    with pytest.raises(UserError, match="the same score"):
        ModelReward(reward_folder, standardize=True)
    with pytest.raises(UserError, match=r"reward\.standardize: only a reward model"):
        make_reward(function=f"{__name__}.count_words", standardize=True)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"functions": [f"{__name__}.count_words", "a.b"], "weights": [0.0, 0.0]}, r"weights: found 0 for every part"),
        (
            {"components": {"a": {"function": "a.b", "weight": 0.0}}},
            r"components\.a\.weight: found 0 for the only part",
        ),
        (
            {"components": {n: {"function": f"a.{n}", "weight": 0} for n in "ab"}},
            r"components\.a\.weight: found 0 for e",
        ),
    ],
)
def test_a_sum_of_nothing_is_refused(settings: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=rf"^reward\.{key}"):
        make_reward(**settings)


def test_a_part_with_the_weight_0_is_only_logged() -> None:
    function = f"{__name__}.count_words"
    reward: Any = make_reward(components={"a": {"function": function, "weight": 0.0}, "b": {"function": function}})
    assert reward(["p"], ["x y"]) == [2.0] and reward.parts == {"a": [2.0], "b": [2.0]}
