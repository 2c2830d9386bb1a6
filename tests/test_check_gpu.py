"""scripts/check_gpu.py: its sections run on a CPU, find what is wrong, and do not lose each other's results."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that imports a module of scripts/."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module


@pytest.fixture
def setting(scripts: Any, tmp_path: Path) -> Any:
    made = scripts("gpu_checks.setting")
    tiny = made.Llama(2, 32, 2, 1, spread=0.2)
    (tmp_path / "own").mkdir()
    return made.Setting("cpu", made.Sizes(tiny, tiny, tiny, length=32, rows=2, steps=2, repeats=1), tmp_path / "own")


def test_nothing_of_the_package_imports_mlflow_as_it_is_imported() -> None:
    for path in (ROOT / "rlhf_lightning").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "mlflow" for name in names), path


def failed(findings: Any) -> list[Any]:
    found = list(findings)
    assert found
    return [finding for finding in found if not finding.ok]


def test_all_sections_together_have_eight_minutes(scripts: Any) -> None:
    check_gpu = scripts("check_gpu")
    assert sum(check_gpu.SECONDS.values()) <= 8 * 60
    for section in check_gpu.SECONDS:
        assert callable(check_gpu.check_of(section))


@pytest.mark.parametrize(
    "section", ["kernels", "decoding", "memory-sft", pytest.param("memory-ppo", marks=pytest.mark.slow)]
)
def test_a_section_finds_nothing_wrong_on_a_cpu(section: str, setting: Any, scripts: Any) -> None:
    assert failed(scripts("check_gpu").check_of(section)(setting)) == []


def test_a_step_is_as_near_to_float64_as_it_has_to_be(
    setting: Any, scripts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreement = scripts("gpu_checks.agreement")
    monkeypatch.setattr(agreement, "TASKS", ("ppo",))
    monkeypatch.setattr(agreement, "PRECISIONS", {"32-true": torch.float32})
    assert failed(agreement.check(setting)) == []


def test_a_resumed_run_is_compared(setting: Any, scripts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    resume = scripts("gpu_checks.resume")
    monkeypatch.setattr(resume, "TASKS", ("reward",))
    assert failed(resume.check(setting)) == []


def test_a_wrong_kernel_is_found(setting: Any, scripts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = scripts("gpu_checks.kernels")
    use = kernels.use_kernels

    def breaks(network: Any, names: Any) -> None:
        use(network, names)
        if names == ("gated_blocks",):
            for block in network.modules():
                if hasattr(block, "act_fn"):
                    block.act_fn = torch.nn.GELU()

    monkeypatch.setattr(kernels, "use_kernels", breaks)
    wrong = {finding.what for finding in failed(kernels.equality(setting))}
    assert "gated blocks, float32: log-probabilities" in wrong
    assert all(what.startswith("gated blocks") for what in wrong)


SAYS = """
import json, time
print(json.dumps({"finding": {"what": "speed", "value": 3.0, "unit": "m/s"}}), flush=True)
"""
PROCESSES = {
    "breaks": SAYS + "raise RuntimeError('no kernel image')",
    "dawdles": SAYS + "time.sleep(60)",
    "is content": SAYS + "print(json.dumps({'status': 'ok'}))",
    "lacks": "import json; print(json.dumps({'status': 'not measured', 'note': 'trl is not installed'}))",
}


def test_a_section_that_breaks_or_dawdles_loses_no_other_figure(scripts: Any) -> None:
    run = scripts("check_gpu").run
    budgets = {
        "breaks": 30.0,
        "dawdles": -27.0,
        "is content": 30.0,
        "lacks": 30.0,
    }  # what one leaves, the next may take
    done = run(PROCESSES, lambda name: [sys.executable, "-c", PROCESSES[name]], budgets)
    sections = {section.name: section for section in done}
    assert {name: section.failed for name, section in sections.items()} == {
        "breaks": True,
        "dawdles": True,
        "is content": False,
        "lacks": False,
    }
    assert sections["breaks"].note == "RuntimeError: no kernel image"
    assert sections["dawdles"].note.startswith("out of time")
    assert all(len(sections[name].findings) == 1 for name in ("breaks", "dawdles", "is content"))
    printed = scripts("gpu_checks.findings").table(sections.values())
    assert printed.count("3 m/s") == 3
    assert "trl is not installed" in printed and "NOT MEASURED" in printed


@pytest.mark.parametrize("status", ["ok", "failed", "not measured"])
def test_the_command_writes_a_file_and_ends_with_1_where_a_section_breaks(
    status: str, scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_gpu, found = scripts("check_gpu"), tmp_path / "found.json"
    section = check_gpu.Section("nf4", status, 1.0, [check_gpu.Finding("speed", 3.0)], "a note")
    monkeypatch.setattr(check_gpu, "run", lambda *arguments: iter([section]))
    monkeypatch.setattr(sys, "argv", ["check_gpu.py", "--cpu", "--out", str(found)])
    with pytest.raises(SystemExit) as ended:
        check_gpu.main()
    assert ended.value.code == (status == "failed")
    assert json.loads(found.read_text())["sections"][0]["findings"][0]["value"] == 3.0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_command_says_how_to_rehearse(scripts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["check_gpu.py"])
    with pytest.raises(SystemExit, match="--cpu"):
        scripts("check_gpu").main()


@pytest.mark.slow
def test_the_rehearsal_finds_nothing_wrong(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "scripts" / "check_gpu.py", "--cpu", "--minutes", "40"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    sections = {each["name"]: each for each in json.loads((tmp_path / "check_gpu.json").read_text())["sections"]}
    assert {name for name, each in sections.items() if each["status"] != "ok"} <= {"trl"}


def test_memory_that_a_process_gives_back_is_no_divisor(
    setting: Any, scripts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = scripts("gpu_checks.memory")
    monkeypatch.setattr(memory, "resident", lambda name: {"VmRSS": 2**30, "VmHWM": 2**29}[name])
    found = {finding.what: finding for finding in memory.check_task(setting, "sft")}
    assert found["planned / measured"].value is None and found["planned peak"].value is not None
