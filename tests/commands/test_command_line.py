"""The commands as a user calls them, in separate processes."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_lightning.commands import train
from rlhf_lightning.environment import typed
from rlhf_lightning.guide.pages import PAGES, page
from rlhf_lightning.runs.run import Run

ROOT = Path(__file__).resolve().parents[2]
# Reports what was imported, after the command has ended.
CALL = """
import atexit, sys
slow = ("torch", "lightning", "transformers", "mlflow", "datasets")
atexit.register(lambda: print("imported:", *[name for name in slow if name in sys.modules]))
from rlhf_lightning.commands.{command} import main
main()
"""


def call(command: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CALL.format(command=command), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("command", "arguments", "line"),
    [
        (
            "train",
            ["experiment=ppo_demo", "optimizer.lrr=1"],
            "optimizer.lrr: no such key; did you mean optimizer.lr?",
        ),
        (
            "train",
            ["-m", "experiment=ppo_demo", "algorithm.gamma=2,3"],
            "algorithm.gamma: found 2; must be a number in [0, 1] (job 0 of the sweep: algorithm.gamma=2 in "
            "outputs/demo/ppo_0)",
        ),
        (
            "train",
            ["experiment=ppo_demo"],
            "model.path: outputs/demo/sft does not exist; first run: rlhf-train experiment=sft_demo",
        ),
        (
            "pipeline",
            ["pipeline=demo", "stages.ppo.algorithm.kl.tarjet=3"],
            "stages.ppo.algorithm.kl.tarjet: no such key; did you mean stages.ppo.algorithm.kl.target?",
        ),
        (
            "evaluate",
            ["policies={a:there/is/none}", "prompts=x.jsonl", "baseline=a"],
            "policies.a: there/is/none does not exist",
        ),
        (
            "export",
            ["run=there/is/none", "to=x"],
            "run: there/is/none does not exist; give the folder of a training run",
        ),
        ("plan", ["experiment=sft", "model.pth=x"], "model.pth: no such key; did you mean model.path?"),
        (
            "plan",
            ["experiment=sft", "device_gb=x"],
            'device_gb: found "x"; must be a number > 0, the GiB of one device',
        ),
        ("chat", ["model=there/is/none"], "model: there/is/none does not exist"),
        ("chat", ["modell=x"], "modell: no such key; did you mean model?"),
    ],
)
def test_wrong_input_is_one_line_exit_code_2_and_imports_no_torch(command, arguments, line, tmp_path):
    done = call(command, *arguments, folder=tmp_path)
    assert done.stderr == f"error: {line}\n"
    assert done.returncode == 2
    assert done.stdout.strip() == "imported:"


def test_explain_answers_without_torch_and_leaves_nothing_behind(tmp_path):
    done = call("train", "experiment=ppo_demo", "explain=true", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "optimiser steps per iteration" in done.stdout
    assert done.stdout.splitlines()[-1] == "imported:"
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_runs_every_job_through_hydras_sweeper(tmp_path):
    done = call(
        "train",
        "-m",
        "experiment=ppo_demo",
        "algorithm.ppo_epochs=1,3",
        "algorithm.num_minibatches=4",
        "explain=true",
        folder=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    steps = [line.split()[4] for line in done.stdout.splitlines() if "optimiser steps per iteration" in line]
    assert steps == ["4", "12"]


def call_in_process(main, *arguments: str, monkeypatch, capsys) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["rlhf-train", *arguments])
    code = 0
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(autouse=True)
def leave_the_process_as_it_was(monkeypatch):
    """The commands quieten libraries for the whole process; tests of other modules want their warnings."""
    monkeypatch.setattr("rlhf_lightning.commands.command_line.quieten", lambda: None)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")


@pytest.mark.parametrize("command", PAGES)
def test_dash_dash_help_prints_the_page(command, monkeypatch, capsys):
    main = importlib.import_module(f"rlhf_lightning.commands.{command.removeprefix('rlhf-')}").main
    code, out, _ = call_in_process(main, "--help", monkeypatch=monkeypatch, capsys=capsys)
    assert (code, out.strip()) == (0, page(command).strip())


def test_help_and_lists_answer_without_torch(tmp_path):
    for words in (("--help", "algorithm=grpo"), ("--list", "algorithms")):
        done = call("train", *words, folder=tmp_path)
        assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "imported:")
        assert "grpo" in done.stdout


def test_a_key_with_dashes_says_how_keys_are_written(monkeypatch, capsys):
    code, _, err = call_in_process(train.main, "--optimizer.lr=1", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2
    assert "--optimizer.lr=1; keys are written without dashes" in err


def test_a_bug_is_three_lines_and_a_file_with_the_traceback(monkeypatch, capsys, empty_folder):
    def broken(config):
        raise RuntimeError("a bug with https://ana:hunter2@host")

    monkeypatch.setattr(train, "check", broken)
    code, _, err = call_in_process(train.main, "experiment=sft_demo", monkeypatch=monkeypatch, capsys=capsys)
    lines = err.splitlines()
    assert code == 1
    assert len(lines) == 3
    assert lines[0].startswith("unexpected error: RuntimeError")
    traceback = Path(lines[2].removeprefix("traceback: ").removesuffix(" (debug=true prints it)"))
    assert "in broken" in traceback.read_text()
    assert "hunter2" not in err + traceback.read_text()
    traceback.unlink()


def test_debug_prints_the_traceback_of_a_bug_and_of_wrong_input(monkeypatch, capsys, empty_folder):
    monkeypatch.setenv("RLHF_LIGHTNING_DEBUG", "")
    words = ("experiment=sft_demo", "optimizer.lrr=1", "debug=true")
    code, _, err = call_in_process(train.main, *words, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("error: optimizer.lrr: no such key")


def test_debug_is_true_or_false(monkeypatch, capsys, empty_folder):
    code, _, err = call_in_process(train.main, "debug=maybe", monkeypatch=monkeypatch, capsys=capsys)
    assert (code, err) == (2, 'error: debug: found "maybe"; must be true or false\n')


def test_a_missing_file_is_one_line(monkeypatch, capsys, empty_folder):
    monkeypatch.setattr(train, "carry_out", lambda run: Path("nowhere.jsonl").read_text())
    code, _, err = call_in_process(train.main, "experiment=sft_demo", monkeypatch=monkeypatch, capsys=capsys)
    assert (code, err) == (2, "error: nowhere.jsonl: no such file or directory\n")


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device", "x.ckpt"), OSError(27, "File too large"), MemoryError()]
)
def test_what_the_machine_refuses_is_one_line(error, monkeypatch, capsys, empty_folder):
    def refused(run):
        raise error

    monkeypatch.setattr(train, "carry_out", refused)
    code, _, err = call_in_process(train.main, "experiment=sft_demo", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("broken.yaml", b"a: [1\nb: }", "broken.yaml, line 2"),
        ("latin.yaml", "name: caf\xe9".encode("latin-1"), "latin.yaml: it is not UTF-8"),
        ("tab.yaml", b"a:\n\tb: 1", "tab.yaml, line 2"),
    ],
)
def test_a_broken_config_file_is_named(name, content, line, monkeypatch, capsys, empty_folder):
    folder = Path("mine/experiment")
    folder.mkdir(parents=True)
    (folder / name).write_bytes(content)
    words = ("--config-dir", "mine", f"experiment={Path(name).stem}")
    code, _, err = call_in_process(train.main, *words, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2
    assert line in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("words", [("-m", "experiment=sft_demo"), ("experiment=sft_demo", "-m")])
def test_jobs_of_a_sweep_with_a_fixed_run_dir_get_folders_of_their_own(words, monkeypatch, capsys, empty_folder):
    folders = []
    monkeypatch.setattr(train, "check_inputs", lambda config: None)
    monkeypatch.setattr(train, "carry_out", lambda run: folders.append(run.config["run_dir"]))
    monkeypatch.setattr(train, "print_end", lambda *_: None)
    call_in_process(train.main, *words, "seed=1,2", monkeypatch=monkeypatch, capsys=capsys)
    assert folders == ["outputs/demo/sft_0", "outputs/demo/sft_1"]


def test_a_sweep_of_one_job_keeps_its_run_dir(monkeypatch, capsys, empty_folder):
    folders = []
    monkeypatch.setattr(train, "check_inputs", lambda config: None)
    monkeypatch.setattr(train, "carry_out", lambda run: folders.append(run.config["run_dir"]))
    monkeypatch.setattr(train, "print_end", lambda *_: None)
    call_in_process(train.main, "-m", "experiment=sft_demo", monkeypatch=monkeypatch, capsys=capsys)
    assert folders == ["outputs/demo/sft"]


def test_a_launcher_without_a_sweep_is_refused(monkeypatch, capsys, empty_folder):
    arguments = ("experiment=sft_demo", "hydra/launcher=slurm")
    code, _, err = call_in_process(train.main, *arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert (code, err) == (2, "error: hydra/launcher=slurm: a launcher runs the jobs of a sweep: rlhf-train -m ...\n")


def test_a_sweep_over_several_processes_is_refused(monkeypatch, capsys, empty_folder):
    arguments = ("-m", "experiment=sft_demo", "seed=1,2", "trainer.devices=2")
    code, _, err = call_in_process(train.main, *arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2
    assert err.startswith("error: trainer.devices: found 2; a sweep (-m)")


def test_the_last_line_of_a_run_opens_mlflow_on_its_store(monkeypatch, capsys, empty_folder):
    monkeypatch.setattr(train, "carry_out", Run.find_place)
    _, out, _ = call_in_process(train.main, "experiment=sft_demo", monkeypatch=monkeypatch, capsys=capsys)
    first, second, *_, last = out.splitlines()
    assert (first, second) == ("run folder: outputs/demo/sft", "next:")
    assert last == f"  curves:         {typed('mlflow')} ui --backend-store-uri sqlite:///outputs/mlflow.db"


def test_the_page_of_the_composed_config_is_hydras(tmp_path):
    done = call("train", "experiment=ppo_demo", "--cfg", "job", folder=tmp_path)
    assert "_target_: rlhf_lightning.algorithms.PPOModule" in done.stdout
    assert done.returncode == 0
