"""Who may import whom. A newcomer draws these arrows from the folder names; here they are checked."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import rlhf_lightning

PACKAGE = Path(rlhf_lightning.__file__).parent
NAME = "rlhf_lightning"

LOWER = {
    "functional",
    "kernels",
    "models",
    "data",
    "judging",
    "rewards",
    "rollout",
    "experience",
    "training",
    "algorithms",
}
UPPER = {"evaluation", "planning", "simulation", "callbacks"}
ARROWS: dict[str, set[str]] = {  # folder -> the folders it may import, besides itself
    "compat": set(),
    "functional": set(),
    "source": set(),
    "kernels": set(),
    "models": {"functional", "kernels"},
    "data": {"functional"},
    "judging": {"functional", "models", "data", "rollout"},
    "rewards": {"functional", "models", "data", "judging"},
    "rollout": {"functional", "kernels", "models", "data"},
    "training": {"functional", "models", "data", "rewards"},
    "experience": {"functional", "models", "data", "rewards", "rollout", "training"},
    "algorithms": LOWER,
    "feedback": {"functional", "models", "data", "rewards", "rollout", "judging"},
    **dict.fromkeys(UPPER, LOWER | UPPER),
    "simulation": LOWER | UPPER | {"feedback"},
    "runs": {"source"},
    "tracking": {"runs", "callbacks"},
    "config": {"source", "runs", "tracking", "kernels", "experience", "judging"},
    "process": {"config"},
    "guide": {"source", "config"},
    "commands": LOWER | UPPER | {"source", "process", "feedback", "runs", "tracking", "config", "guide"},
}
FREE = {
    "addresses",
    "compat",
    "environment",
    "errors",
    "file_hashes",
    "content_hashes",
    "hashes",
    "message_text",
    "sharded_folders",
    "disk",
    "durable",
    "outside_text",
    "stopping",
    "store_url",
    "secret_text",
    "run_identity",
    "guarded_streams",
    "working_folder",
    "setting_rules",
    "reward_calls",
    "value_types",
    "value_checks",
    "__version__",
}  # all except `functional`
MAY_IMPORT = {
    "hydra": (
        "compat/hydra_names.py",
        "commands/",
    ),
    "omegaconf": ("compat/hydra_names.py", "commands/", "runs/config_file.py"),
}


def _imports(source: str, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Yield (line, absolute name) of everything a module imports, also inside functions and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                parents = parts[: len(parts) - node.level + is_package]
                base = ".".join(parents + ([base] if base else []))
            # `from rlhf_lightning import commands` imports a folder by its alias.
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def _violations(source: str, path: str) -> list[str]:
    """Return the forbidden imports of a file at `path` (relative to the package)."""
    parts = Path(path).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    module = ".".join((NAME, *(parts[:-1] if is_package else parts)))
    # A module next to the folders may import none of them; `python -m rlhf_lightning` is a command.
    folder = parts[0] if len(parts) > 1 else "commands" if path == "__main__.py" else ""
    found = []
    for line, name in _imports(source, module, is_package):
        root, *rest = name.split(".")
        if not path.startswith(MAY_IMPORT.get(root, "")):
            found.append(f"{path}:{line} imports {root}: only {', '.join(MAY_IMPORT[root])} may")
        allowed = ({folder} | ARROWS.get(folder, set())) | (FREE if folder != "functional" else set())
        if root == NAME and rest and rest[0] not in allowed:
            found.append(f"{path}:{line} imports {NAME}.{rest[0]}")
    return found


def test_imports_follow_the_arrows() -> None:
    files = [path for path in sorted(PACKAGE.rglob("*.py")) if "conf" not in path.relative_to(PACKAGE).parts]
    assert files
    found = [violation for path in files for violation in _violations(path.read_text(), str(path.relative_to(PACKAGE)))]
    assert not found, "\n".join(found)


def test_every_folder_has_its_arrows() -> None:
    folders = {path.relative_to(PACKAGE).parts[0] for path in PACKAGE.glob("*/**/*.py")} - {"conf"}
    assert folders <= set(ARROWS), f"say in this file what {sorted(folders - set(ARROWS))} may import"


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("functional/kl.py", "from rlhf_lightning.models import load_tokenizer"),
        ("functional/kl.py", "from rlhf_lightning.errors import UserError"),
        ("models/loading.py", "import rlhf_lightning.data.rows"),
        ("data/rows.py", "from rlhf_lightning import models"),
        ("rewards/model.py", "from rlhf_lightning.rollout import Rollout"),
        ("rollout/native.py", "from ..algorithms import PPOModule"),
        ("rollout/__init__.py", "from .. import algorithms"),
        ("algorithms/ppo.py", "def f():\n    from rlhf_lightning.callbacks import Averaging"),
        ("algorithms/ppo.py", "from omegaconf import OmegaConf"),
        ("evaluation/report.py", "from rlhf_lightning.commands.train import main"),
        ("simulation/world.py", "import hydra.utils"),
        ("errors.py", "from rlhf_lightning.functional import entropy"),
    ],
)
def test_a_forbidden_arrow_is_seen(path, source) -> None:
    assert _violations(source, path)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("functional/kl.py", "import torch\nfrom rlhf_lightning.functional._arguments import blank"),
        ("models/loading.py", "from ..errors import UserError\nfrom .forward import response_logprobs"),
        ("algorithms/ppo.py", "from rlhf_lightning.rollout import Rollout"),
        ("evaluation/report.py", "from rlhf_lightning.simulation import gold_reward"),
        ("commands/train.py", "import hydra\nfrom rlhf_lightning.algorithms import PPOModule"),
    ],
)
def test_an_allowed_arrow_passes(path, source) -> None:
    assert not _violations(source, path)


def test_importing_the_package_loads_no_heavy_library() -> None:
    """`rlhf-train --help` and the checks of a config must answer before torch is imported."""
    heavy = ["torch", "lightning", "transformers", "hydra", "mlflow"]
    code = f"import sys, rlhf_lightning; print([name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=True)
    assert run.stdout.strip() == "[]"


def _folder_imports() -> dict[str, set[str]]:
    """Return folder -> the other folders that it imports from, also inside functions and under TYPE_CHECKING."""
    graph: dict[str, set[str]] = {folder: set() for folder in ARROWS}
    for path in PACKAGE.glob("*/**/*.py"):
        folder, *_ = path.relative_to(PACKAGE).parts
        if folder not in ARROWS:  # the configs, in a wheel
            continue
        module = ".".join((NAME, *path.relative_to(PACKAGE).with_suffix("").parts))
        for _, name in _imports(path.read_text(), module, path.stem == "__init__"):
            root, *rest = name.split(".")
            if root == NAME and rest and rest[0] in ARROWS and rest[0] != folder:
                graph[folder].add(rest[0])
    return graph


def _circle(graph: dict[str, set[str]]) -> set[str]:
    """Return what is left of a graph after repeatedly removing everything that imports nothing of the rest."""
    left = dict(graph)
    while lowest := {folder for folder, others in left.items() if not others & set(left)}:
        left = {folder: others for folder, others in left.items() if folder not in lowest}
    return set(left)


def test_no_folders_import_each_other_in_a_circle() -> None:
    graph = _folder_imports()
    assert "models" in graph["algorithms"], "the imports are not seen"
    assert _circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == {"a", "b", "c", "d"}
    assert _circle(graph) == set()


def test_the_commands_are_smaller_than_the_algorithms_and_what_they_are_made_of() -> None:
    def lines(*folders: str) -> int:
        return sum(len(path.read_text().splitlines()) for name in folders for path in (PACKAGE / name).rglob("*.py"))

    assert lines("commands") < lines("algorithms", "functional", "experience")


def test_an_algorithm_is_short_and_so_are_the_bases() -> None:
    algorithms = {
        getattr(importlib.import_module(module), name).__module__
        for module, _, name in (
            yaml.safe_load(path.read_text())["_target_"].rpartition(".")
            for path in (PACKAGE.parent / "conf/algorithm").glob("*.yaml")
        )
    }
    lengths = {
        f"{NAME}.algorithms.{path.stem}": len(path.read_text().splitlines())
        for path in (PACKAGE / "algorithms").glob("*.py")
    }
    assert algorithms and algorithms <= set(lengths)
    assert {name: n for name, n in lengths.items() if n > (120 if name in algorithms else 250)} == {}
