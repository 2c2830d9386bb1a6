"""The folder: all files, the same bytes for the same seed, written once, complete or absent."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_lightning.errors import UserError
from rlhf_lightning.simulation import gold_reward, write_world
from rlhf_lightning.simulation import writing as writing_module

SMALL = {
    "n_train_prompts": 40,
    "n_test_prompts": 20,
    "demonstrations_per_prompt": 2,
    "pairs_per_prompt": 2,
    "rankings_per_prompt": 1,
    "answers_per_ranking": 3,
}
COLUMNS = {
    "sft": {"prompt", "completion", "kind", "quality", "gold"},
    "preferences_train": {"prompt", "chosen", "rejected", "kind", "gold_chosen", "gold_rejected", "label_probability"},
    "preferences_test": {"prompt", "chosen", "rejected", "kind", "gold_chosen", "gold_rejected", "label_probability"},
    "rankings_train": {"prompt", "responses", "kind", "gold_responses"},
    "prompts_train": {"prompt", "kind", "topic"},
    "prompts_test": {"prompt", "kind", "topic"},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("data") / "world", **SMALL)


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_every_file_has_its_columns_and_the_manifest_counts_its_rows(world: Path) -> None:
    figures = json.loads((world / "world.json").read_text())["figures"]
    for name, columns in COLUMNS.items():
        rows = read(world / f"{name}.jsonl")
        assert len(rows) == figures[f"{name}_rows"] > 0
        assert all(set(row) == columns for row in rows)
    assert 0.5 < figures["preferences_test_bayes_accuracy"] < 1.0


def test_no_test_prompt_is_in_any_training_file(world: Path) -> None:
    unseen = {row["prompt"] for row in read(world / "prompts_test.jsonl")}
    assert {row["prompt"] for row in read(world / "preferences_test.jsonl")} == unseen
    for name in ("sft", "preferences_train", "rankings_train", "prompts_train"):
        assert not unseen & {row["prompt"] for row in read(world / f"{name}.jsonl")}


def test_written_gold_is_the_gold_of_what_is_written(world: Path) -> None:
    rows = read(world / "sft.jsonl")
    golds = gold_reward([str(row["prompt"]) for row in rows], [str(row["completion"]) for row in rows])
    assert golds == pytest.approx([row["gold"] for row in rows], abs=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_model_folders_load_as_ordinary_hugging_face_folders(world: Path, family: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(world / "models" / family)
    tokenizer = AutoTokenizer.from_pretrained(world / "models" / family)
    assert model.config.vocab_size == len(tokenizer)
    text = "i am sorry, but i can not help with that."
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}) == 3


def test_the_same_arguments_give_the_same_bytes_and_another_seed_gives_others(world: Path, tmp_path: Path) -> None:
    assert contents(write_world(tmp_path / "again", **SMALL)) == contents(world)
    other = contents(write_world(tmp_path / "other", seed=1, **SMALL))
    assert all(other[f"{name}.jsonl"] != contents(world)[f"{name}.jsonl"] for name in COLUMNS)


def test_a_written_world_is_left_alone_and_other_arguments_replace_it(tmp_path: Path) -> None:
    folder = write_world(tmp_path / "world", **SMALL)
    written = (folder / "sft.jsonl").stat()
    write_world(folder, **SMALL)
    assert (folder / "sft.jsonl").stat() == written
    before = contents(folder)
    write_world(folder, seed=1, **SMALL)
    assert contents(folder)["sft.jsonl"] != before["sft.jsonl"]
    assert json.loads((folder / "world.json").read_text())["arguments"]["seed"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["world"]


def test_a_write_that_fails_leaves_the_earlier_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_world(tmp_path / "world", **SMALL)
    before = contents(folder)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(writing_module, "_write_models", fail)
    with pytest.raises(OSError, match="disk full"):
        write_world(folder, seed=1, **SMALL)
    assert contents(folder) == before
    assert [p.name for p in tmp_path.iterdir()] == ["world"]


def test_a_folder_with_other_things_in_it_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"is not empty and holds no world\.json"):
        write_world(tmp_path, **SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_ranked_lists_are_optional(tmp_path: Path) -> None:
    folder = write_world(tmp_path / "world", **{**SMALL, "answers_per_ranking": 0})
    assert not (folder / "rankings_train.jsonl").exists()


@pytest.mark.parametrize("name", ["demonstrations_per_prompt", "pairs_per_prompt"])
def test_no_rows_for_a_prompt_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"{name}: found 0; must be a whole number >= 1"):
        write_world(tmp_path / "world", **{**SMALL, name: 0})


def test_a_length_bias_makes_the_chosen_answers_longer(tmp_path: Path) -> None:
    extra = {}
    for bias in (0.0, 1.0):
        rows = read(write_world(tmp_path / f"{bias}", **SMALL, length_bias=bias) / "preferences_train.jsonl")
        extra[bias] = sum(len(str(r["chosen"]).split()) - len(str(r["rejected"]).split()) for r in rows) / len(rows)
    assert extra[1.0] > extra[0.0] + 1


@pytest.mark.parametrize("name", ["sft.jsonl", "models/llama/model.safetensors", "hashes.json"])
def test_a_world_that_has_changed_on_the_disk_is_refused_and_left_alone(name: str, world: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(world, tmp_path / "world")
    write_world(copy, **SMALL)
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(bytes(content))
    with pytest.raises(UserError, match=f"{name} (has changed since it was written|is damaged)"):
        write_world(copy, **SMALL)
    assert (copy / name).read_bytes() == bytes(content)
    (copy / "hashes.json").unlink()
    assert write_world(copy, **SMALL) == copy


def test_a_former_world_with_something_else_in_it_is_not_overwritten(tmp_path: Path) -> None:
    folder = write_world(tmp_path / "world", **SMALL)
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(
        UserError, match=r"contains files that are not part of the world \(thesis.txt\), so it is not overwritten"
    ):
        write_world(folder, **{**SMALL, "answers_per_ranking": 0}, seed=1)
    assert (folder / "thesis.txt").read_text() == "years of work"
    (folder / "thesis.txt").unlink()
    write_world(folder, **{**SMALL, "answers_per_ranking": 0}, seed=1)
