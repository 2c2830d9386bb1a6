"""Plain transformers and peft read the run's own model from an exported folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhf_lightning.commands import export
from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.errors import UserError
from rlhf_lightning.models import load_causal_lm, load_reward_model, load_tokenizer, score_moments
from rlhf_lightning.rewards import ModelReward
from tests.commands.runs import write_adapter, write_model, write_run
from tests.tiny import tiny_tokenizer

PROMPTS = ["a b c", "z", "k l m n o"]


def run_export(*overrides: str) -> None:
    export.export(compose_config("export", overrides))


def greedy(model: Any, tokenizer: Any) -> list[list[int]]:
    answers = []
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        answers.append(model.eval().generate(ids, max_new_tokens=12, do_sample=False)[0].tolist())
    return answers


def plain_scores(model: Any, tokenizer: Any) -> list[float]:
    texts = [f"{prompt} x y {tokenizer.eos_token}" for prompt in PROMPTS]
    with torch.no_grad():
        return [model.eval()(torch.tensor([tokenizer(text)["input_ids"]])).logits.item() for text in texts]


def read(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / name).read_text())


@pytest.fixture
def full_run(empty_folder: Path) -> Path:
    write_model(empty_folder / "runs/sft/model", chat=True)
    return write_run(Path("runs/sft"))


@pytest.fixture
def lora_run(empty_folder: Path) -> Path:
    write_model(empty_folder / "base")
    write_adapter(empty_folder / "runs/lora/model", Path("base"))
    return write_run(Path("runs/lora"), "base")


@pytest.fixture
def reward_run(empty_folder: Path) -> Path:
    write_model(empty_folder / "base")
    write_adapter(empty_folder / "runs/reward/model", Path("base"), classifier=True)
    return write_run(Path("runs/reward"), "base", "RewardModule")


def test_plain_transformers_answers_as_the_run_does(full_run):
    run_export(f"run={full_run}", "to=out/my_model")
    plain = AutoModelForCausalLM.from_pretrained("out/my_model")
    tokenizer = AutoTokenizer.from_pretrained("out/my_model")
    assert greedy(plain, tokenizer) == greedy(load_causal_lm(full_run), load_tokenizer(full_run))
    assert tokenizer.chat_template == load_tokenizer(full_run).chat_template
    assert read(Path("out/my_model"), "generation_config.json")["eos_token_id"] == tokenizer.eos_token_id


def test_the_model_in_a_run_folder_is_the_run(full_run):
    run_export(f"run={full_run}/model", "to=my_model")
    assert read(Path("my_model"), "config.json")["model_type"] == "llama"


@pytest.mark.parametrize("form", ["merged", "adapter"])
def test_an_adapter_answers_as_the_run_does_merged_and_alone(form, lora_run, monkeypatch, tmp_path):
    wanted = greedy(load_causal_lm(lora_run), load_tokenizer(lora_run))
    base = greedy(load_causal_lm("base"), load_tokenizer("base"))
    run_export(f"run={lora_run}", "to=my_model", f"form={form}")
    folder = Path("my_model").resolve()
    assert (folder / "adapter_config.json").is_file() is (form == "adapter")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # the base is found from any folder
    loader = AutoPeftModelForCausalLM if form == "adapter" else AutoModelForCausalLM
    assert greedy(loader.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)) == wanted
    assert wanted != base


@pytest.mark.parametrize("form", ["merged", "adapter"])
def test_a_reward_model_scores_as_the_run_does_and_keeps_its_moments(form, reward_run):
    texts = (PROMPTS, ["x y"] * len(PROMPTS))
    wanted = ModelReward(reward_run)(*texts)
    run_export(f"run={reward_run}", "to=my_model", f"form={form}")
    plain = (
        AutoPeftModelForSequenceClassification.from_pretrained("my_model", num_labels=1, pad_token_id=None)
        if form == "adapter"
        else AutoModelForSequenceClassification.from_pretrained("my_model")
    )
    assert plain_scores(plain, AutoTokenizer.from_pretrained("my_model")) == pytest.approx(wanted, abs=1e-5)
    assert ModelReward("my_model")(*texts) == pytest.approx(wanted, abs=1e-5)
    assert score_moments("my_model") == score_moments(reward_run) == (0.5, 2.0)


def test_plain_transformers_scores_the_eos_also_where_it_is_the_pad_token(empty_folder):
    write_model(empty_folder / "reward/model", classifier=True)
    tiny_tokenizer(pad_is_eos=True).save_pretrained("reward/model")
    write_run(Path("reward"), algorithm="RewardModule")
    wanted = ModelReward("reward")(PROMPTS, ["x y"] * len(PROMPTS))
    run_export("run=reward", "to=my_model")
    plain = AutoModelForSequenceClassification.from_pretrained("my_model")
    assert plain_scores(plain, AutoTokenizer.from_pretrained("my_model")) == pytest.approx(wanted, abs=1e-5)
    assert load_reward_model("reward").classifier.config.pad_token_id is not None  # the run's own is unchanged


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("kind", ["full", "lora", "reward", "reward_lora"])
def test_the_lines_on_the_card_run_as_they_stand(kind, chat, empty_folder, capsys):
    reward = kind.startswith("reward")
    write_model(empty_folder / "base", chat=chat)
    if "lora" in kind:
        write_adapter(empty_folder / "run/model", Path("base"), classifier=reward)
    else:
        write_model(empty_folder / "run/model", chat=chat, classifier=reward)
    load_tokenizer("base").save_pretrained("run/model")
    write_run(Path("run"), "base", "RewardModule" if reward else "SFTModule")
    run_export("run=run", "to=my_model", f"form={'adapter' if 'lora' in kind else 'merged'}")
    card = Path("my_model/README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(code, names)
    if reward:
        hello = [{"role": "user", "content": "Hello"}] if chat else "Hello"
        answer = "How can I help?" if chat else " How can I help?"
        columns = {"messages": [hello]} if chat else {}
        assert names["score"] == pytest.approx(ModelReward("run")(["Hello"], [answer], **columns)[0], abs=1e-5)
    else:
        assert names["output"].shape[1] > names["inputs"]["input_ids"].shape[1]


@pytest.mark.parametrize("quantized", [False, True])
def test_merging_what_was_trained_on_4_bit_weights_says_what_that_changes(quantized, lora_run, capsys):
    config = json.loads((lora_run / "config.yaml").read_text())
    config["model"]["quantization"] = {"_target_": "rlhf_lightning.models.NF4"} if quantized else None
    (lora_run / "config.yaml").write_text(json.dumps(config))
    run_export(f"run={lora_run}", "to=merged", "form=merged")
    assert ("4 bits" in capsys.readouterr().out) == quantized


def test_dtype_converts_the_weights(full_run, lora_run):
    for run, wanted in ((full_run, torch.float16), (lora_run, torch.bfloat16)):
        name = str(wanted).removeprefix("torch.")
        run_export(f"run={run}", "to=my_model", f"dtype={name}", "overwrite=true")
        assert AutoModelForCausalLM.from_pretrained("my_model").dtype == wanted


def test_without_a_dtype_a_folder_keeps_its_own(full_run):
    AutoModelForCausalLM.from_pretrained(full_run / "model").bfloat16().save_pretrained(full_run / "model")
    run_export(f"run={full_run}", "to=my_model")
    assert AutoModelForCausalLM.from_pretrained("my_model").dtype == torch.bfloat16


def test_an_export_that_is_there_is_replaced_only_on_request(full_run):
    run_export(f"run={full_run}", "to=my_model", "dtype=bfloat16")
    with pytest.raises(UserError, match=r"^to: my_model exists and is not empty; .* overwrite=true"):
        run_export(f"run={full_run}", "to=my_model")
    run_export(f"run={full_run}", "to=my_model", "dtype=float32", "overwrite=true")
    assert AutoModelForCausalLM.from_pretrained("my_model").dtype == torch.float32
    assert (Path("my_model") / "README.md").is_file()


def test_only_what_rlhf_export_wrote_is_overwritten(full_run):
    write_model(Path("somebodys"))
    with pytest.raises(UserError, match="somebodys was not written by rlhf-export"):
        run_export(f"run={full_run}", "to=somebodys", "overwrite=true")
    run_export(f"run={full_run}", "to=my_model")
    Path("my_model/notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"my_model contains files that rlhf-export did not write \(notes.txt\)"):
        run_export(f"run={full_run}", "to=my_model", "overwrite=true")
    assert Path("my_model/notes.txt").read_text() == "mine"


def test_nothing_is_written_through_a_link(full_run):
    run_export(f"run={full_run}", "to=my_model")
    Path("link").symlink_to("my_model")
    with pytest.raises(UserError, match="link is a link"):
        run_export(f"run={full_run}", "to=link", "overwrite=true")


def test_the_base_of_a_run_is_never_overwritten(full_run):
    run_export(f"run={full_run}", "to=base")
    write_run(Path("runs/dpo"), begins_from="base", algorithm="DPOModule")
    write_model(Path("runs/dpo/model"))
    with pytest.raises(UserError, match=r"^to: base holds base, which the run started from"):
        run_export("run=runs/dpo", "to=base", "overwrite=true")


def test_an_empty_folder_is_filled(full_run):
    Path("my_model").mkdir()
    run_export(f"run={full_run}", "to=my_model")
    assert Path("my_model/config.json").is_file()


def test_an_error_halfway_leaves_what_was_there_and_nothing_beside_it(full_run, monkeypatch):
    run_export(f"run={full_run}", "to=my_model")
    before = sorted(path.name for path in Path().iterdir())

    def full_disk(*args: Any, **kwargs: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(export, "write_model_card", full_disk)
    with pytest.raises(OSError, match="no space left"):
        run_export(f"run={full_run}", "to=my_model", "overwrite=true")
    assert sorted(path.name for path in Path().iterdir()) == before
    assert Path("my_model/model.safetensors").is_file()
    with pytest.raises(OSError, match="no space left"):
        run_export(f"run={full_run}", "to=another")
    assert sorted(path.name for path in Path().iterdir()) == before


@pytest.mark.parametrize("target", ["runs/sft", "runs/sft/model", "runs", "."])
def test_the_run_itself_is_never_overwritten(target, full_run):
    with pytest.raises(UserError, match=r"^to: .* holds the run itself"):
        run_export(f"run={full_run}", f"to={target}", "overwrite=true")


def test_what_holds_no_model_is_never_overwritten(full_run):
    Path("letters").mkdir()
    Path("letters/love.txt").write_text("x")
    with pytest.raises(UserError, match="letters was not written by rlhf-export"):
        run_export(f"run={full_run}", "to=letters", "overwrite=true")
    with pytest.raises(UserError, match="is a file"):
        run_export(f"run={full_run}", "to=letters/love.txt", "overwrite=true")


def test_wrong_runs_are_named_with_the_next_step(full_run, empty_folder):
    with pytest.raises(UserError, match=r"^run: nowhere does not exist"):
        run_export("run=nowhere", "to=x")
    with pytest.raises(UserError, match=r"^run: runs is not .* it holds runs: runs/sft$"):
        run_export("run=runs", "to=x")
    write_run(empty_folder / "stopped")
    with pytest.raises(UserError, match=r"^run: stopped holds no model yet; finish it with rlhf-train .* ckpt=last"):
        run_export("run=stopped", "to=x")


def test_an_adapter_needs_a_run_that_trained_one_on_a_whole_model(full_run, lora_run):
    with pytest.raises(
        UserError, match=r"^form: runs/sft trained all weights, so there is no adapter; use form=merged"
    ):
        run_export(f"run={full_run}", "to=x", "form=adapter")
    with pytest.raises(UserError, match=r"^dtype: an adapter is exported as it was trained"):
        run_export(f"run={lora_run}", "to=x", "form=adapter", "dtype=float16")
    file = lora_run / "model/adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "runs/lora/model"}))
    with pytest.raises(UserError, match="is itself an adapter"):
        run_export(f"run={lora_run}", "to=x", "form=adapter")
