"""What a newcomer types: the blocks of README and of docs/start, line by line, in one shell."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from rlhf_lightning.simulation import Labeler, build_tokenizer, build_world
from tests.commands.runs import CHAT_TEMPLATE

ROOT = Path(__file__).parents[1]
README, OWN_DATA = ROOT / "README.md", ROOT / "docs/start/your_own_data.md"
INSTALLED = Path(sys.prefix) / "bin"
OURS = ("MAKE", "MFLAGS", "PYTEST", "PYTHON", "VIRTUAL_ENV", "HF_", "XDG_")  # variables that a newcomer lacks
HUB_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
REPOSITORY = "https://github.com/rlhf-lightning/rlhf-lightning"


def blocks(page: Path, language: str) -> list[str]:
    """Return the code blocks of a page in this language (a regular expression), in order."""
    return re.findall(rf"```(?:{language})\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def lines(block: str) -> list[str]:
    """Return the command lines of a bash block."""
    return [line for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def readme_lines() -> list[str]:
    """Return the command lines of README's bash blocks, in order."""
    return [line for block in blocks(README, "bash") for line in lines(block)]


def typed(page: Path) -> list[str]:
    """Return everything a reader of a page types: command lines, and Python blocks as scripts or files."""
    commands: list[str] = []
    for block in blocks(page, "bash|python"):
        file = re.match(r"# (\w+\.py)\n", block)
        if block not in blocks(page, "python"):
            commands += [until_told(line) for line in lines(block)]
        elif file is not None:
            commands.append(f"cat > {file[1]} <<'END'\n{block}END")
        else:
            commands.append(f"python - <<'END'\n{block}END")
    return commands


def until_told(line: str) -> str:
    """Return a line that ends: a server is stopped once it has printed its links, and tests run elsewhere."""
    if line.startswith("make test"):
        return line.replace("make test", "make --dry-run test", 1)  # continuous integration runs them
    if not line.startswith("rlhf-label"):
        return line
    serve = f"{{ exec {line}\n}} > served.txt 2>&1 &"  # exec: $! is then the server itself
    wait = "for i in $(seq 600); do grep -q http served.txt && break; kill -0 $!; sleep 0.2; done; grep http served.txt"
    return f"{serve}\n{wait}\nkill -TERM $!; wait $! || true; cat served.txt"


def newcomer(home: Path) -> dict[str, str]:
    """Return the environment of a user with an empty home; the machine's caches and mirrors stay."""
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    path = [folder for folder in kept["PATH"].split(os.pathsep) if not (Path(folder) / "rlhf-train").exists()]
    cache = os.environ.get("UV_CACHE_DIR", str(Path.home() / ".cache" / "uv"))
    return {**kept, "PATH": os.pathsep.join(path), "HOME": str(home), "UV_CACHE_DIR": cache}


def in_one_shell(commands: list[str], folder: Path, environment: dict[str, str]) -> str:
    """Return the output of commands in one bash; the first failing one is reported with everything before it."""
    script = "\n".join(["set -ex", *commands])
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,  # rlhf-chat has nobody to talk to
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def set_up(folder: Path) -> None:
    """Make a checkout whose environment is ready, with a pipeline that ends immediately."""
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
    typed_here = [line for line in readme_lines() if not line.startswith(("git clone", "make test"))]
    asked = [line if line.startswith(("make ", "source ")) else f"command -v {line.split()[0]}" for line in typed_here]
    assert any(line.startswith("command -v rlhf-train") for line in asked)
    in_one_shell(asked, tmp_path, newcomer(tmp_path / "home"))


@pytest.mark.parametrize("target", ["setup", "demo"])
def test_make_ends_by_printing_readmes_line(target: str, tmp_path: Path) -> None:
    set_up(tmp_path)
    last = in_one_shell([f"make {target}"], tmp_path, newcomer(tmp_path / "home")).splitlines()[-1]
    said = re.search(r"source \S+", last)
    assert said is not None
    assert said[0] in {line.split("#")[0].strip() for line in readme_lines()}


def test_readme_clones_the_repository_that_the_package_names() -> None:
    assert f'Repository = "{REPOSITORY}"' in (ROOT / "pyproject.toml").read_text()
    assert readme_lines()[0] == f"git clone {REPOSITORY} && cd {REPOSITORY.rpartition('/')[2]}"


# ---- README's Python


@pytest.mark.parametrize(("algorithm", "at_most"), [("DPOModule", 8), ("PPOModule", 12)])
def test_readmes_python_trains(algorithm: str, at_most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = [block for block in blocks(README, "python") if algorithm in block]
    assert len([line for line in block.splitlines() if line.strip()]) <= at_most + block.count("export")
    monkeypatch.chdir(tmp_path)
    write_inputs(tmp_path)
    made: dict[str, object] = {}
    exec(compile(block, algorithm, "exec"), made)
    (module,) = [value for value in made.values() if type(value).__name__ == algorithm]
    assert module.trainer.global_step > 0  # type: ignore[attr-defined]
    if "export" in block:
        assert (tmp_path / "my_ppo/model.safetensors").is_file()


# ---- the files that the pages name


def write_rows(path: Path, **answers: str) -> None:
    """Write rows of different prompts, so that some can be held out."""
    rows = [{"prompt": f"how do i {verb}?", **answers} for verb in ("sleep", "cook", "swim", "sing", "run", "read")]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows * 4), encoding="utf-8")


def write_inputs(folder: Path) -> None:
    """Write the files that README's blocks name, and a tiny model under the hub names that they use."""
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
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=1024, **ids)
    for name in ("gpt2", HUB_MODEL):
        GPT2LMHeadModel(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def write_own_data(folder: Path) -> None:
    """Write 500 conversations, and a chat model of 260,000 weights under the hub's name."""
    pairs = build_world().preferences("train", 1, Labeler())
    says = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    rows = [{key: [{"role": role, "content": row[key]}] for key, role in says.items()} for row in pairs[:500]]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    size = {"hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 5, "num_attention_heads": 8}
    config = LlamaConfig(
        vocab_size=len(tokenizer), num_key_value_heads=4, max_position_embeddings=512, tie_word_embeddings=True,
        **size, **{name: getattr(tokenizer, name) for name in names},
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / HUB_MODEL)
    tokenizer.model_max_length = 512
    tokenizer.save_pretrained(folder / HUB_MODEL)


# ---- all of it


@pytest.mark.slow
def test_every_block_of_readme_works_in_a_fresh_clone_with_an_empty_home(tmp_path: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("this is not a git checkout")
    environment = newcomer(tmp_path / "home")
    (tmp_path / "home/.gitconfig").write_text(f'[url "{ROOT}"]\n\tinsteadOf = {REPOSITORY}\n')
    (tmp_path / "inputs").mkdir()
    write_inputs(tmp_path / "inputs")
    clone, *others = typed(README)
    in_one_shell([clone, f"cp -r {tmp_path}/inputs/. .", *others], tmp_path, environment)


@pytest.mark.slow
def test_the_page_on_your_own_data_goes_from_500_rows_to_an_exported_ppo_model(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    write_own_data(folder)
    environment = newcomer(tmp_path / "home")
    environment |= {"PATH": f"{INSTALLED}{os.pathsep}{environment['PATH']}", "HF_HUB_OFFLINE": "1"}
    few = [line.replace("trainer.max_epochs=40", "trainer.max_epochs=2") for line in typed(OWN_DATA)]
    in_one_shell(few, folder, environment)
    assert (folder / "my_model/model.safetensors").is_file()
    kept = {name: (folder / f"{name}.jsonl").read_text().splitlines() for name in ("preferences", "held_out")}
    assert len(kept["preferences"]) + len(kept["held_out"]) == 500
    prompts = {name: {str(json.loads(row)["prompt"]) for row in rows} for name, rows in kept.items()}
    assert not prompts["preferences"] & prompts["held_out"]
    summary = json.loads((folder / "outputs/my/evaluation/summary.json").read_text())
    assert {"ppo.proxy_win_rate_vs_sft", "ppo.kl"} <= summary.keys()
