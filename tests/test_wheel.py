"""The wheel is self-contained: installed elsewhere, it finds its configs and runs from any folder."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpack the wheel into a separate folder, which is not the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_configs_ship_inside(installed: Path) -> None:
    shipped = {
        p.relative_to(installed / "rlhf_lightning/conf") for p in (installed / "rlhf_lightning/conf").rglob("*.yaml")
    }
    assert shipped == {p.relative_to(ROOT / "conf") for p in (ROOT / "conf").rglob("*.yaml")}


def test_the_types_ship_inside(installed: Path) -> None:
    assert (installed / "rlhf_lightning/py.typed").is_file()


def test_an_experiment_runs_from_another_folder(installed: Path, tmp_path: Path) -> None:
    code = "from rlhf_lightning.commands.train import main; main()"
    overrides = ["experiment=sft_demo", "logger=none", "trainer.max_steps=2", "+prepare.n_train_prompts=20"]
    overrides += ["+prepare.demonstrations_per_prompt=2", "+prepare.n_test_prompts=5"]
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-P", "-c", code, *overrides], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "outputs/demo/sft/model/model.safetensors").is_file()
