"""The commands of the README and the docs are real: each is composed and checked like the command itself would."""

import re
import shlex
import sys
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path

import pytest

from rlhf_lightning.commands import chat, evaluate, export, plan, train
from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.commands.pipeline import check_pipeline, compose_pipeline
from rlhf_lightning.config.feedback_checks import (
    check_agreement,
    check_collect,
    check_judge_command,
    check_label,
)

ROOT = Path(__file__).parents[1]
DOCS = (
    *("agreement", "clusters", "evaluation", "extending", "feedback", "judging", "kl", "memory", "models", "results"),
    *("resuming", "rewards", "rollouts", "rounds", "tracking"),
    *("coming_from", "how_it_works", "troubleshooting", "which_algorithm"),
    *("start/install", "start/demo", "start/your_own_data"),
)
PAGES = ("README.md", *(f"docs/{page}.md" for page in DOCS), "CONTRIBUTING.md")


def commands() -> list[str]:
    """Return every command line in a bash block of the pages, once, with continuation lines joined and comments cut."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(), re.DOTALL):
            found += [line for line in block.replace("\\\n", " ").splitlines() if line.strip()]
    return [*dict.fromkeys(line.split("  #")[0].strip() for line in found)]  # several pages have some of them


@pytest.mark.parametrize("line", [line for line in commands() if "rlhf-" in line.split()[0]])
def test_a_documented_command_is_accepted(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # rlhf-evaluate checks immediately whether its policies exist
    seed0 = [f"overoptimization/seed0/{stage}" for stage in ("sft", "reward", "ppo")]
    for stage in ("my/sft", "my/reward", "my/ppo", "my/reward2", "my/dpo2", "demo/sft", "demo/ppo", *seed0):
        folder = tmp_path / "outputs" / stage
        (folder / "model").mkdir(parents=True)
        head = '{"architectures": ["LlamaForSequenceClassification"]}' if "reward" in stage else "{}"
        (folder / "model/config.json").write_text(head)
        (folder / "model/adapter_config.json").write_text('{"base_model_name_or_path": "x"}')
        (folder / "config.yaml").write_text('{"model": {"path": "x"}, "algorithm": {}}')
        (folder / "metrics.jsonl").touch()
    for name in {
        "held_out.jsonl",
        "my_preferences.jsonl",
        *re.findall(r"import=(\S+)", line),
        *re.findall(r"[ .]prompts=(\S+\.jsonl)", line),
        *re.findall(r" (?:data|refusals)=(\S+\.jsonl)", line),
        *re.findall(r"stages\.\w+\.data\.\w+=(\S+\.jsonl)", line),
    }:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('{"prompt": "Hello"}')
    if "embeddings.model=" in line:
        (tmp_path / "outputs/my/encoder").mkdir(parents=True)
        (tmp_path / "outputs/my/encoder/config.json").write_text("{}")
    if "harness=" in line:  # an extra, which need not be installed here
        monkeypatch.setitem(sys.modules, "lm_eval", module_from_spec(ModuleSpec("lm_eval", None)))
    for name in re.findall(r"([\w/]+\.yaml)", line):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("task: my_task")
    command, *arguments = shlex.split(line, comments=True)
    config_dir = None
    if arguments[:1] == ["--config-dir"]:
        arguments = arguments[2:]
        (example,) = ROOT.glob(f"examples/*/conf/{arguments[0].replace('=', '/')}.yaml")
        config_dir = str(example.parents[1])
        monkeypatch.syspath_prepend(str(example.parents[2]))
    if arguments[:1] == ["-m"]:
        arguments = arguments[1:]  # a sweep of one job
    if arguments[:1] == ["--help"]:
        return
    if command == "rlhf-train":
        train.check(compose_config("train", arguments, config_dir))
    elif command == "rlhf-evaluate":
        evaluate.check(compose_config("evaluate", arguments, config_dir))
    elif command == "rlhf-plan":
        assert list(plan.configs(plan.split_device(arguments)[1], config_dir))
    elif command == "rlhf-export":
        export.check(compose_config("export", arguments, config_dir))
    elif command == "rlhf-agreement":
        check_agreement(compose_config("agreement", arguments, config_dir))
    elif command == "rlhf-judge":
        monkeypatch.setattr("rlhf_lightning.config.feedback_checks.check_store", lambda url: None)
        check_judge_command(compose_config("judge", arguments, config_dir))
    elif command == "rlhf-collect":
        check_collect(compose_config("collect", arguments, config_dir))
    elif command == "rlhf-label":
        check_label(compose_config("label", arguments, config_dir))
    elif command == "rlhf-track":
        compose_config("track", arguments, config_dir)
    elif command == "rlhf-chat":
        chat.check(compose_config("chat", arguments, config_dir))
    else:
        assert command == "rlhf-pipeline"
        check_pipeline(compose_pipeline(arguments, config_dir))


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith("make ")])
def test_a_documented_make_target_exists(line: str) -> None:
    assert re.search(rf"^{line.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_files_that_the_pages_point_to_exist() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text()):
            assert target.startswith("http") or ((ROOT / page).parent / target).exists(), f"{page}: {target}"


def table_rows(page: Path, after: str) -> list[list[str]]:
    """Return the cells of the first table after a heading, without its header."""
    section = page.read_text(encoding="utf-8").partition(f"\n## {after}\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def test_the_figures_next_to_trl_are_measured_ones() -> None:
    measured = table_rows(ROOT / "docs/performance.md", "Figures")
    assert len(table_rows(ROOT / "README.md", "Next to TRL")) >= 5
    for name, *figures in table_rows(ROOT / "README.md", "Next to TRL"):
        ours, trl, speed, memory = (figure.split()[0] for figure in figures)
        same = [
            row
            for row in measured
            if f" / {ours} / " in row[1]
            and f" / {trl} / " in row[2]
            and f"{float(row[3].split()[0]):.1f}" == speed
            and row[7].split()[0] == memory
        ]
        assert len(same) == 1, name
