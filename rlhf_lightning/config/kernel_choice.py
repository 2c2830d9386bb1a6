"""What is known about a run's kernels before torch is imported, and the line of `explain=true` that names them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf_lightning.config.devices import GPUS
from rlhf_lightning.errors import blaming
from rlhf_lightning.kernels.registry import Circumstances, chosen, read_asked

_LOADERS = tuple(f"rlhf_lightning.models.load_{name}" for name in ("causal_lm", "reward_model", "process_reward_model"))
_CPUINFO = Path("/proc/cpuinfo")
_CAST_TO = {"bf16-true": "bfloat16", "64-true": "float64"}


def check_kernels(config: Mapping[str, Any]) -> None:
    """Raise UserError for a kernel in `model.kernels` that does not exist or has no effect in this run."""
    if config["model"].get("_target_") in _LOADERS:
        chosen(read_asked(config["model"].get("kernels", "auto")), _known(config))


def kernels_line(config: Mapping[str, Any]) -> str | None:
    """Return a line that names the kernels of a run, as far as its model is known; None for a user's own class."""
    model = config.get("model") or {}
    if model.get("_target_") not in _LOADERS:
        return None
    asked, known = read_asked(model.get("kernels", "auto")), _known(config)
    device = "cuda" if any(gpu.exists() for gpu in GPUS) else "cpu"
    on = chosen(asked, replace(known, device=device, fast_products=device == "cpu" and _is_amd_with_avx512()))
    family = f", as far as {model.get('path')} fits them" if known.family is None and asked == "auto" else ""
    shown = asked if isinstance(asked, str) else f"[{', '.join(asked)}]"
    return f"  kernels: {', '.join(on) or 'none'} (model.kernels={shown}, on {device}{family})"


def _known(config: Mapping[str, Any]) -> Circumstances:
    """Return what a config, and the model's own if it is a local folder, say about the circumstances."""
    model, precision = config["model"], str(config["trainer"].get("precision", "32-true"))
    architecture = _architecture(str(model.get("path")))
    weights = model.get("dtype", "float32")
    if weights == "auto":
        weights = architecture.get("dtype") or architecture.get("torch_dtype")
    if weights is not None:
        weights = _CAST_TO.get(precision, weights)
    return Circumstances(
        family=_text(architecture).get("model_type"),
        attention=model.get("attn_implementation"),
        weights=weights,
        adapter="float32" if model.get("adapter") else None,
        checkpointing=bool(model.get("activation_checkpointing")),
        autocast=precision in ("bf16-mixed", "16-mixed"),
    )


def _architecture(path: str, above: int = 0) -> dict[str, Any]:
    """Return the `config.json` of a local model, or of an adapter's base; {} if there is none."""
    for folder in (Path(path) / "model", Path(path)):
        if (adapter := _read(folder / "adapter_config.json")) is not None:
            base = adapter.get("base_model_name_or_path")
            return _architecture(base, above + 1) if isinstance(base, str) and not above else {}
        if (found := _read(folder / "config.json")) is not None:
            return found
    return {}


def _read(file: Path) -> dict[str, Any] | None:
    """Return what a file holds; None if it does not exist."""
    with blaming(f"model.path: {file} cannot be read"):  # also raised for a name that is too long
        if not file.is_file():
            return None
        found = json.loads(file.read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else {}


def _text(architecture: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a configuration that describes the language model."""
    text = architecture.get("text_config")
    return text if isinstance(text, dict) else architecture


def _is_amd_with_avx512() -> bool:
    """Return the same as `kernels.machine.onednn_is_faster`, without torch."""
    words = _CPUINFO.read_text(encoding="utf-8") if _CPUINFO.is_file() else ""
    return "vendor_id\t: AuthenticAMD" in words and all(f" {flag} " in words for flag in ("avx512f", "avx512bw"))
