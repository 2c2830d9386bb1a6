"""A run that has changed on disk is refused by later commands before torch is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.commands import export
from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.commands.evaluate import check as check_evaluate
from rlhf_lightning.config.inputs import check_model
from rlhf_lightning.errors import UserError
from rlhf_lightning.hashes import FILE, check_model_files, read_hashes, write_hashes
from rlhf_lightning.runs import run_folder
from rlhf_lightning.runs.after_training import export_model
from rlhf_lightning.runs.lineage import check_history
from rlhf_lightning.runs.resuming import check_same_run
from rlhf_lightning.runs.run import read_run
from rlhf_lightning.runs.run_folder import read_json_lines, read_summary, write_config, write_summary
from tests.commands.runs import write_adapter, write_model, write_run


def change(file: Path) -> None:
    text = file.read_text()
    file.write_text(text.replace("1", "2") if "1" in text else text.replace("e", "f"))


@pytest.fixture
def run(empty_folder: Path) -> Path:
    """Make a finished run, sealed as the command leaves it."""
    folder = Path("runs/one")
    model = write_model(empty_folder / folder / "model")
    write_hashes(model)
    write_run(folder)
    config = json.loads((folder / "config.yaml").read_text())
    (folder / "metrics.jsonl").write_text('{"step": 1, "train/loss": 0.5}\n')
    write_config(folder, config)
    write_summary(folder, {"val/loss": 0.125})
    return folder


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json", FILE])
def test_every_command_names_its_key_and_the_file(run: Path, name: str) -> None:
    change(run / "model" / name)
    for key in ("model.path", "reward.model"):
        with pytest.raises(UserError, match=rf"^{key}: runs/one/model/{name} (has changed|is damaged)"):
            check_model(key, str(run))
    with pytest.raises(UserError, match=rf"^run: runs/one/model/{name}"):
        export.find_run(str(run))
    words = [
        f"policies={{p:{run}}}",
        "baseline=p",
        "prompts=prompts.jsonl",
        "gold.function=rlhf_lightning.simulation.gold_reward",
    ]
    Path("prompts.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(UserError, match=rf"^policies\.p: runs/one/model/{name}"):
        check_evaluate(compose_config("evaluate", words))


def test_weights_of_another_size_are_found_without_torch(run: Path) -> None:
    weights = run / "model/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    code = (
        "import sys\nfrom rlhf_lightning.config.inputs import check_model\n"
        "try:\n    check_model('model.path', 'runs/one')\nexcept ValueError as error:\n    print(error)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    message, imported = done.stdout.splitlines()
    assert "runs/one/model/model.safetensors has changed" in message
    assert imported == "False"


def test_the_base_of_an_adapter_is_looked_at_too(empty_folder: Path) -> None:
    write_hashes(write_model(empty_folder / "base"))
    write_adapter(empty_folder / "lora", Path("base"))
    check_model("model.path", "lora")
    change(Path("base/config.json"))
    with pytest.raises(UserError, match=r"^model\.path: base/config\.json has changed"):
        check_model("model.path", "lora")


@pytest.mark.parametrize("name", ["config.yaml", "summary.json"])
def test_what_a_card_tells_of_a_run_is_what_the_run_has_written(run: Path, name: str) -> None:
    assert read_run(run) is not None
    change(run / name)
    write_run(Path("runs/two"), str(run))
    for read in (read_run, check_history, read_summary):
        with pytest.raises(UserError, match=rf"^runs/one/{name} has changed since it was written"):
            read(run)
    with pytest.raises(UserError, match=f"{name} has changed"):
        check_history("runs/two")


def test_the_metrics_of_a_finished_run_are_its_own(run: Path) -> None:
    assert read_json_lines(run / "metrics.jsonl") == [{"step": 1, "train/loss": 0.5}]
    change(run / "metrics.jsonl")
    with pytest.raises(UserError, match=r"metrics\.jsonl has changed"):
        read_json_lines(run / "metrics.jsonl")
    (run / FILE).unlink()  # accepted
    (run / "metrics.jsonl").write_bytes(b"\xff\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl cannot be read"):
        read_json_lines(run / "metrics.jsonl")


def test_a_run_that_goes_on_in_the_folder_voids_the_hashes_of_the_end(run: Path) -> None:
    write_config(run, {"name": "other", "model": {}, "algorithm": {}})
    assert set(json.loads((run / FILE).read_text())["files"]) == {"config.yaml"}
    assert read_summary(run) == {}
    change(run / "metrics.jsonl")
    assert read_json_lines(run / "metrics.jsonl") == [{"step": 2, "train/loss": 0.5}]


def test_a_new_run_that_is_killed_early_leaves_no_hashes_of_the_former_one(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_folder, "write_hashes", killed)
    with pytest.raises(KeyboardInterrupt):
        write_config(run, {"name": "other", "model": {}, "algorithm": {}})
    assert read_hashes(run) is None


def test_a_run_is_resumed_with_the_config_that_it_has_written(empty_folder: Path) -> None:
    config = {"name": "one", "seed": 1, "matmul_precision": "highest"}
    write_config(empty_folder, config)
    checkpoint = empty_folder / "checkpoints/last.ckpt"
    check_same_run(config, checkpoint)
    change(empty_folder / "config.yaml")
    with pytest.raises(UserError, match=r"^ckpt: .*/config\.yaml has changed since it was written; restore it, or"):
        check_same_run(config, checkpoint)


def test_an_export_has_hashes_and_is_made_of_what_the_run_has_written(run: Path) -> None:
    export.export(compose_config("export", [f"run={run}", "to=made"]))
    check_model_files("made", weights=True)
    listed = set(json.loads(Path("made", FILE).read_text())["files"])
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= listed
    assert "README.md" not in listed
    weights = run / "model/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(UserError, match=r"^run: .*runs/one/model/model\.safetensors has changed"):
        export.export(compose_config("export", [f"run={run}", "to=made_2"]))
    assert not Path("made_2").exists()


def test_an_adapter_is_copied_only_as_it_was_written(empty_folder: Path) -> None:
    write_model(empty_folder / "base")
    write_hashes(write_adapter(empty_folder / "runs/lora/model", Path("base")))
    run = write_run(Path("runs/lora"), "base")
    export.export(compose_config("export", [f"run={run}", "to=made", "form=adapter"]))
    check_model_files("made", weights=True)  # it contains the base's full path
    weights = run / "model/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(UserError, match=r"^run: .*adapter_model\.safetensors has changed"):
        export.export(compose_config("export", [f"run={run}", "to=made_2", "form=adapter"]))


def test_an_algorithm_with_an_export_of_its_own_gets_hashes(empty_folder: Path) -> None:
    def write(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text("{}")

    export_model(write, empty_folder)
    check_model_files(empty_folder / "model", weights=True)
    assert (empty_folder / "model" / FILE).is_file()
