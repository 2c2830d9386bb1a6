"""What a newcomer types: README's blocks, line by line, in one shell."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf_lightning.simulation import build_tokenizer

ROOT = Path(__file__).parents[1]
INSTALLED = Path(sys.prefix) / "bin"
OURS = ("MAKE", "MFLAGS", "PYTEST", "PYTHON", "VIRTUAL_ENV", "HF_", "OMP_", "XDG_")  # variables that a newcomer lacks


def lines() -> list[str]:
    """The command lines of README's bash blocks, in order."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def newcomer(home: Path) -> dict[str, str]:
    """The environment of a user with an empty home: caches and mirrors that the machine offers stay."""
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    path = [folder for folder in kept["PATH"].split(os.pathsep) if not (Path(folder) / "rlhf-train").exists()]
    cache = os.environ.get("UV_CACHE_DIR", str(Path.home() / ".cache" / "uv"))
    return {**kept, "PATH": os.pathsep.join(path), "HOME": str(home), "UV_CACHE_DIR": cache}


def in_one_shell(commands: list[str], folder: Path, home: Path) -> str:
    """What the commands print, one after the other in one bash; the first that fails is told with all before it."""
    script = "\n".join(["set -ex", *commands])
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env=newcomer(home),
        stdin=subprocess.DEVNULL,  # rlhf-chat has nobody to talk to
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def set_up(folder: Path) -> None:
    """A checkout whose environment is ready, with a pipeline that ends at once."""
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    commands = folder / ".venv" / "bin"
    commands.mkdir(parents=True)
    for command in INSTALLED.iterdir():
        (commands / command.name).symlink_to(command)
    (commands / "rlhf-pipeline").unlink()
    (commands / "rlhf-pipeline").write_text("#!/bin/sh\necho the demo\n")
    (commands / "rlhf-pipeline").chmod(0o755)
    (folder / ".venv" / ".ready").touch()


@pytest.mark.skipif(not (INSTALLED / "activate").exists(), reason="the tests do not run in a virtual environment")
def test_readme_says_how_its_commands_get_on_the_path_before_the_first_one(tmp_path: Path) -> None:
    set_up(tmp_path)
    typed = [line for line in lines() if not line.startswith("make test")]
    asked = [line if line.startswith(("make ", "source ")) else f"command -v {line.split()[0]}" for line in typed]
    assert any(line.startswith("command -v rlhf-train") for line in asked)
    in_one_shell(asked, tmp_path, tmp_path / "home")


@pytest.mark.parametrize("target", ["setup", "demo"])
def test_make_ends_by_printing_readmes_line(target: str, tmp_path: Path) -> None:
    set_up(tmp_path)
    last = in_one_shell([f"make {target}"], tmp_path, tmp_path / "home").splitlines()[-1]
    said = re.search(r"source \S+", last)
    assert said is not None
    assert said[0] in {line.split("#")[0].strip() for line in lines()}


def write_rows(path: Path, **answers: str) -> None:
    """Rows of different prompts, so that some can be held out."""
    rows = [{"prompt": f"how do i {verb}?", **answers} for verb in ("sleep", "cook", "swim", "sing", "run", "read")]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows * 4), encoding="utf-8")


def own_data_and_model(folder: Path) -> None:
    """The files that README's commands name, and a tiny model under the name that they give to one of the hub."""
    good, bad = "i can help with that.", "no."
    write_rows(folder / "demonstrations.jsonl", completion=good)
    write_rows(folder / "preferences.jsonl", chosen=good, rejected=bad)
    for name in ("prompts.jsonl", "held_out.jsonl"):
        write_rows(folder / name)
    (folder / "my_pkg.py").write_text(
        "def my_fn(prompts, responses, **columns):\n    return [float(len(r)) for r in responses]\n"
    )
    tokenizer = build_tokenizer()
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=256, **ids)
    GPT2LMHeadModel(config).save_pretrained(folder / "gpt2")
    tokenizer.save_pretrained(folder / "gpt2")


@pytest.mark.slow
def test_every_line_of_readme_works_in_a_fresh_clone_with_an_empty_home(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    if subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=False).returncode:
        pytest.skip("this is not a git checkout")
    own_data_and_model(clone)
    in_one_shell(lines(), clone, tmp_path / "home")
