"""The average of several runs' weights, and what is refused because its mean would have no meaning."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlhf_lightning.commands import export
from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.errors import UserError
from rlhf_lightning.hashes import check_model_files
from rlhf_lightning.models import load_causal_lm, load_reward_model, load_scorer, save_model
from tests.commands.runs import write_adapter, write_model, write_run
from tests.tiny import WORDS, tiny_model, tiny_tokenizer


def run_export(*overrides: str) -> None:
    export.export(compose_config("export", overrides))


def moved(model: Any, seed: int) -> Any:
    """Return the model as if training had moved every weight."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) / 10)
    return model


def whole_run(name: str, seed: int, base: str = "base", scores: bool = False) -> Path:
    """Return a run from `base` that trained all weights."""
    model = load_reward_model(base) if scores else load_causal_lm(base)
    save_model(moved(model, seed), tiny_tokenizer(), Path(name) / "model")
    return write_run(Path(name), base, "RewardModule" if scores else "DPOModule")


@pytest.fixture
def base(empty_folder: Path) -> Path:
    return write_model(empty_folder / "base")


def state(folder: str | Path) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def test_every_weight_is_the_mean_and_the_card_names_the_runs(base):
    for seed, name in enumerate(("one", "two", "three")):
        whole_run(name, seed)
    run_export("average=[one,two,three]", "weights=[1,2,1]", "to=mean")
    parts, mean = [state(f"{name}/model") for name in ("one", "two", "three")], state("mean")
    assert set(mean) == set(parts[0])
    for name, value in mean.items():
        a, b, c = (part[name].double() for part in parts)
        assert value.dtype == torch.float32 and torch.equal(value, ((a + 2 * b + c) / 4).float()), name
    card = Path("mean/README.md").read_text()
    assert (
        "the mean of those of 3 runs" in card
        and "| `two`: direct preference optimisation (`two`, seed 3) | 0.5 |" in card
    )
    assert json.loads(Path("mean/.rlhf-export.json").read_text())["average"] == ["one", "two", "three"]
    assert Path("mean/hashes.json").is_file()
    check_model_files("mean", weights=True, key="model")
    run_export("average=[one,three]", "to=mean", "overwrite=true", "dtype=bfloat16")
    name, value = next(iter(state("mean").items()))
    assert torch.equal(value, ((parts[0][name].double() + parts[2][name].double()) / 2).bfloat16())


def test_a_reward_models_score_head_is_averaged_and_its_unit_is_dropped(base):
    for seed, name in enumerate(("one", "two")):
        whole_run(name, seed, scores=True)
        config = Path(name) / "model/config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "score_mean": 1.0, "score_std": 2.0}))
    run_export("average=[one,two]", "to=mean")
    heads = [load_scorer(folder).classifier.score.weight for folder in ("one", "two", "mean")]
    assert torch.equal(heads[2], ((heads[0].double() + heads[1].double()) / 2).float())
    assert not torch.equal(heads[0], heads[1])
    assert json.loads(Path("mean/config.json").read_text())["score_std"] is None


def test_adapters_are_averaged_as_the_products_that_they_add(base):
    """The mean of A times the mean of B is another matrix."""
    for name, scale in (("one", 1.0), ("two", -3.0)):
        write_adapter(Path(name) / "model", base)
        file = Path(name) / "model/adapter_model.safetensors"
        save_file({key: value * scale for key, value in load_file(file).items()}, file)
        write_run(Path(name), "base", "DPOModule")
    run_export("average=[one,two]", "to=mean")
    one, two, mean, start = (load_causal_lm(folder).state_dict() for folder in ("one", "two", "mean", "base"))
    assert all(torch.equal(mean[k], ((one[k].double() + two[k].double()) / 2).float()) for k in mean)
    name = next(key for key in mean if not torch.equal(mean[key], start[key]))
    torch.testing.assert_close(mean[name] - start[name], (one[name] - start[name]) * 5, atol=1e-5, rtol=0)


def other_vocabulary() -> None:
    tiny_tokenizer(words=[*WORDS[:-1], "other"]).save_pretrained("two/model")


def other_template() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained("two/model")


def other_computation() -> None:
    file = Path("two/model/config.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), "rms_norm_eps": 0.1}))


def other_base() -> None:
    write_model(Path("elsewhere"))
    model = moved(tiny_model(), 9)
    model.save_pretrained("elsewhere")
    whole_run("two", 1, "elsewhere")


def same_base_in_another_place() -> None:
    write_model(Path("elsewhere"))
    whole_run("two", 1, "elsewhere")


def heads_beside_it() -> None:
    Path("two/model/ilql").mkdir()
    save_file({}, "two/model/ilql/heads.safetensors")


REFUSED = [
    (other_base, "average: one comes from base and two from elsewhere, which are different models"),
    (other_vocabulary, "average: the tokenizers of one/model and two/model differ in their vocabulary"),
    (other_template, "average: the tokenizers of one/model and two/model differ in their chat template"),
    (other_computation, "average: one/model and two/model differ in rms_norm_eps: 1e-06 and 0.1"),
    (lambda: whole_run("two", 1, scores=True), "average: two is a reward model and one is a policy"),
    (lambda: write_run(Path("two"), "a/gone/model"), "average: two began from a/gone/model, which does not exist here"),
    (heads_beside_it, "average: two/model/ilql/heads.safetensors holds weights"),
]


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    with contextlib.chdir(folder):
        write_model(Path("base"))
        whole_run("one", 0)
        whole_run("two", 1)
    return folder


@pytest.mark.parametrize(("change", "line"), REFUSED, ids=[each[1][:60] for each in REFUSED])
def test_what_has_no_meaningful_mean_is_refused_in_one_line(change, line, two_runs, empty_folder):
    shutil.copytree(two_runs, empty_folder, dirs_exist_ok=True)
    change()
    with pytest.raises(UserError) as error:
        run_export("average=[one,two]", "to=mean")
    assert str(error.value).startswith(line) and "\n" not in str(error.value)
    assert not Path("mean").exists()


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ("form=adapter", "form: the mean of several LoRA adapters is not an adapter"),
        ("average=[one]", "average: found 1 run; must be at least two"),
        ("average=[one,one/../one]", "average: one/../one is there twice"),
        ("weights=[1]", "weights: found 1 numbers for 2 runs"),
        ("weights=[1,0]", "weights"),
        ("run=one", "run: found beside average"),
        ("average=null run=one weights=[1,2]", "weights: only an average has weights"),
        ("average=[nowhere,one]", "average: nowhere does not exist"),
    ],
)
def test_settings_that_do_not_fit_an_average_are_refused(overrides, line, empty_folder):
    with pytest.raises(UserError) as error:
        run_export("average=[one,two]", "to=mean", *overrides.split())
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


def test_an_average_is_not_written_over_one_of_its_runs(two_runs, empty_folder):
    shutil.copytree(two_runs, empty_folder, dirs_exist_ok=True)
    with pytest.raises(UserError, match=r"^to: two holds the run itself"):
        run_export("average=[one,two]", "to=two")


def test_runs_of_one_lineage_may_begin_from_different_runs(base):
    """Two runs from two checkpoints of one training, or from a copy of the same base, share their first weights."""
    whole_run("sft", 5)
    whole_run("one", 0, "sft")
    same_base_in_another_place()
    run_export("average=[one,two]", "to=mean")
    assert Path("mean/model.safetensors").is_file()
