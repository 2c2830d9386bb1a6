"""Answers that are labelled one by one, and prompts paired with the answers to other prompts."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf_lightning.data import UnpairedDataModule
from rlhf_lightning.data.unpaired import UnpairedLoader
from rlhf_lightning.errors import UserError
from tests.tiny import WORDS, tiny_tokenizer


def module(rows: list[dict[str, Any]], **kwargs: Any) -> UnpairedDataModule:
    data = UnpairedDataModule(tiny_tokenizer(), rows, **kwargs)
    data.setup("fit")
    return data


def row(i: int, label: Any = True) -> dict[str, Any]:
    return {"prompt": WORDS[i], "completion": WORDS[i + 1], "label": label}


@pytest.mark.parametrize(
    ("label", "desirable"), [(True, True), (False, False), (1, True), (0, False), ("true", True), ("0", False)]
)
def test_a_label_is_true_or_false_or_that_in_numbers_or_text(label: Any, desirable: bool) -> None:
    assert module([row(0, label), row(1)]).train_rows[0].desirable is desirable


@pytest.mark.parametrize("label", [2, -1, 0.5, "yes", "", [True], {"a": 1}])
def test_any_other_label_is_refused_with_its_row(label: Any) -> None:
    with pytest.raises(UserError, match=r"^data\.train, row 2: label: found .*; must be true or false \(or 1 or 0\)"):
        module([row(0), row(1, label)])


def test_pairs_are_split_and_share_their_prompt() -> None:
    pairs = [{"prompt": "a b", "chosen": "c", "rejected": "d"}, {"prompt": "e", "chosen": "f", "rejected": "g"}]
    rows = module(pairs).train_rows
    assert [each.desirable for each in rows] == [True, False, True, False]
    assert rows[0].prompt_ids == rows[1].prompt_ids
    assert rows[0].answer != rows[1].answer


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt": "a", "completion": "b"},
        {"prompt": "a", "completion": "b", "label": None},
        {"prompt": "a", "responses": ["b", "c"]},
        {"text": "a"},
    ],
)
def test_rows_of_another_format_are_refused(wrong: dict[str, Any]) -> None:
    allowed = r"must be prompt \+ completion \+ label \| chosen \+ rejected"
    with pytest.raises(UserError, match=rf"^data\.train, row 2: .*not a format for labelled answers; {allowed}"):
        module([row(0), wrong])


def test_a_row_is_emptied_to_keep_a_rank_in_step() -> None:
    (first, *_) = module([row(i) for i in range(3)]).train_rows
    assert first.emptied().weight == 0.0
    assert first.emptied().answer == first.answer


def loader(data: UnpairedDataModule, **kwargs: Any) -> UnpairedLoader:
    made = data.train_dataloader()
    assert isinstance(made, UnpairedLoader)
    for name, value in kwargs.items():
        setattr(made, name, value)
    return made


def test_each_answer_moves_on_by_one_place_in_the_order_of_the_epoch() -> None:
    made = loader(module([row(i) for i in range(7)]))
    for epoch in (0, 1):
        made.set_epoch(epoch)
        order = made.order()
        assert made.others() == {i: order[place - 1] for place, i in enumerate(order)}


def test_answers_to_the_same_prompt_are_passed_over() -> None:
    same = [{"prompt": "a", "completion": word, "label": True} for word in WORDS[5:8]]
    rows = [
        row(1),
        *same,
        row(2),
        {"prompt": "b", "completion": "z", "label": False},
    ]  # the last has the first's prompt
    made = loader(module(rows), shuffle=False)
    assert made.others() == {0: 4, 1: 0, 2: 0, 3: 0, 4: 3, 5: 4}


@pytest.mark.parametrize(
    ("accumulate", "sizes"), [(1, [1] * 4), (2, [2, 0, 2, 0]), (3, [3, 0, 0, 1]), (9, [4, 0, 0, 0])]
)
def test_the_pairs_of_a_step_are_on_its_first_batch(accumulate: int, sizes: list[int]) -> None:
    made = loader(module([row(i) for i in range(7)], batch_size=2), accumulate=accumulate)
    assert [len(batch.mismatched) for batch in made] == sizes  # type: ignore[attr-defined]


def test_a_resumed_epoch_goes_on_with_the_pairs_of_its_step() -> None:
    data = module([row(i) for i in range(7)], batch_size=1)
    whole = list(loader(data, accumulate=2))
    resumed = loader(data, accumulate=2)
    resumed.load_state_dict({**resumed.state_dict(), "position": 4})
    for one, other in zip(resumed, whole[4:], strict=True):
        assert len(one.mismatched) == len(other.mismatched)  # type: ignore[attr-defined]
        for a, b in zip(one.mismatched, other.mismatched, strict=True):  # type: ignore[attr-defined]
            assert a.input_ids.tolist() == b.input_ids.tolist()


@pytest.mark.parametrize("rows", [7, 5])  # with five, the second batch has a row for one rank only
def test_ranks_share_the_pairs_of_a_step_and_a_filler_counts_for_none(rows: int) -> None:
    data = module([row(i) for i in range(rows)], batch_size=2)
    seen = []
    for rank in (0, 1):
        for batch in loader(data, rank=rank, world_size=2, batch_size=2, accumulate=2):
            for pair in batch.mismatched:  # type: ignore[attr-defined]
                seen += [tuple(ids) for ids, w in zip(pair.input_ids.tolist(), pair.weights.tolist(), strict=True) if w]
    alone = [tuple(ids) for batch in loader(data) for pair in batch.mismatched for ids in pair.input_ids.tolist()]  # type: ignore[attr-defined]
    assert sorted(seen) == sorted(alone)
    assert len(seen) == rows


def test_a_pair_is_no_longer_than_a_row_may_be() -> None:
    long = [
        {"prompt": " ".join(WORDS[:6]), "completion": "a", "label": True},
        {"prompt": "z", "completion": " ".join(WORDS[:6]), "label": False},
    ]
    for batch in loader(module(long, max_length=8)):
        assert batch.input_ids.shape[1] <= 8  # type: ignore[attr-defined]
        assert all(pair.input_ids.shape[1] <= 8 for pair in batch.mismatched)  # type: ignore[attr-defined]
