"""The working folder is searched for the config, and never for a library that looks for a package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def python(code: str, folder: Path) -> str:
    prelude = f"import sys; sys.path.insert(1, {str(ROOT)!r})\nfrom rlhf_lightning import working_folder as w\n"
    start = "w.take_working_folder_off_path(); w.import_from_working_folder()\n"
    done = subprocess.run(
        [sys.executable, "-c", prelude + start + code], cwd=folder, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


def test_a_reward_and_its_own_imports_are_found(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import beside\n\ndef score(prompts, responses, **columns):\n    return beside.N\n"
    )
    (tmp_path / "beside.py").write_text("N = [1.0]\n")
    code = "from rlhf_lightning.rewards.function import FunctionReward\nprint(FunctionReward('mine.score')([''], ['']))"
    assert python(code, tmp_path).strip() == "[1.0]"


def test_a_target_is_found_through_hydra(tmp_path):
    (tmp_path / "mine.py").write_text("def make():\n    return 'made'\n")
    code = "from hydra.utils import instantiate\nprint(instantiate({'_target_': 'mine.make'}))"
    assert python(code, tmp_path).strip() == "made"


def test_a_library_that_looks_for_a_package_does_not_find_a_file_of_that_name(tmp_path):
    (tmp_path / "sentencepiece.py").write_text("print('fired')\n")
    (tmp_path / "json.py").write_text("print('fired')\n")
    code = (
        "import json, importlib.util, transformers.utils.import_utils as u\n"
        "print(u.is_sentencepiece_available())\n"
        "import transformers.convert_slow_tokenizer\n"
        "print(eval(compile('__import__(\"importlib\").util.find_spec(\"sentencepiece\")', u.__file__, 'eval')))\n"
    )
    assert python(code, tmp_path).split() == ["False", "None"]


def test_plugins_of_hydra_are_not_looked_for_there(tmp_path):
    (tmp_path / "hydra_plugins").mkdir()
    (tmp_path / "hydra_plugins" / "evil.py").write_text("print('fired')\n")
    (tmp_path / "colorlog.py").write_text("print('fired')\n")
    code = (
        "import hydra\n"
        "for name in ('hydra_plugins.evil', 'colorlog'):\n"
        "    make = f'def look():\\n    import {name}\\n'\n"
        "    space = {}\n"
        "    exec(compile(make, hydra.__file__, 'exec'), space)\n"
        "    try:\n        space['look']()\n"
        "    except ImportError as error:\n        print('not found')\n"
    )
    assert python(code, tmp_path).splitlines() == ["not found"] * 2


@pytest.mark.parametrize("path", ["", ":{root}", ".:{root}", "{root}:", "{here}:{root}"])
def test_an_entry_of_the_path_that_means_the_working_folder_does_not_count(path, tmp_path, monkeypatch):
    """`PYTHONPATH=$PYTHONPATH:/x` has an empty entry, which Python takes for the working folder."""
    (tmp_path / "colorlog.py").write_text("print('fired')\n")
    monkeypatch.setenv("PYTHONPATH", path.format(root=ROOT, here=tmp_path))
    code = "exec(compile('try:\\n import colorlog\\nexcept ImportError:\\n print(0)', '/x/site-packages/a.py', 'exec'))"
    assert python(code, tmp_path).split() == ["0"]
