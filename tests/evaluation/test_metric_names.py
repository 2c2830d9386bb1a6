"""docs/metrics.md defines what is logged."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rlhf_lightning.evaluation.table import HEADINGS

ROOT = Path(__file__).parents[2]
NAME = re.compile(
    r'f?"((?:train|val|objective|kl|policy|value|rollout|time|perf|rewards|logps|\{split\}|\{prefix\})/?[a-z_/]+)"'
)
STATISTICS = [
    "policy/approx_kl",
    "policy/clip_fraction",
    "policy/ratio_mean",
    "policy/ratio_max",
    "value/clip_fraction",
    *(f"time/{what}{phase}" for what in ("", "share_") for phase in ("rollout", "score", "update")),
    *(f"perf/{what}tokens_per_second" for what in ("", "update_")),
]


def logged_names() -> set[str]:
    package = ROOT / "rlhf_lightning"
    files = [*(package / "algorithms").glob("*.py"), package / "callbacks" / "instruments.py"]
    names = {
        name.replace("{split}", "train").replace("{prefix}", "")
        for path in files
        for name in NAME.findall(path.read_text())
    }
    return {name for name in names if "/" in name and not name.endswith("/")} | set(STATISTICS)


@pytest.mark.parametrize("name", sorted(logged_names()))
def test_every_logged_metric_is_defined(name):
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert f"`{name}`" in text or f"`{name.removeprefix('val/')}`" in text  # "on validation rows the names carry val/"


@pytest.mark.parametrize("stem", HEADINGS)
def test_every_evaluation_key_is_defined(stem):
    key = f"{stem}_vs_<baseline>" if "win_rate" in stem else stem
    assert f"`{key}`" in (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
