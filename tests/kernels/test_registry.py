"""Which kernels are active: what is requested, what fits, and what was measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import rlhf_lightning
from rlhf_lightning.errors import UserError
from rlhf_lightning.kernels import KERNELS, Circumstances, chosen, read_asked

ROOT = Path(rlhf_lightning.__file__).parents[1]
LLAMA = Circumstances(device="cpu", family="llama", attention="sdpa", weights="float32")


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("autoo", "model.kernels: found autoo; must be auto, none, or a list of packing, .*did you mean auto"),
        ("packing", r"found packing; .*did you mean model.kernels=\[packing\]"),
        (["paking"], "no such kernel: paking; must be .*did you mean packing"),
        (["packing", "nroms"], "no such kernel: nroms; .*did you mean norms"),
        ([], "an empty list"),
        (["norms", "norms"], "norms is given twice"),
        (["last_layer"], "last_layer has no effect without packing"),
        (["row_attention", "norms"], "row_attention has no effect without packing"),
        (None, "found None"),
        (3, "found 3"),
    ],
)
def test_what_is_not_a_choice_is_refused_in_one_line(asked, says) -> None:
    with pytest.raises(UserError, match=says) as refused:
        read_asked(asked)
    assert "\n" not in str(refused.value)


def test_auto_takes_all_on_a_cpu_and_packing_alone_elsewhere() -> None:
    assert chosen("auto", LLAMA) == tuple(KERNELS)
    for device in ("cuda", "mps", "xpu"):
        assert chosen("auto", Circumstances(**{**vars(LLAMA), "device": device})) == (
            ("packing",) if device == "cuda" else ()
        )
    assert "fast_products" not in chosen("auto", Circumstances(**{**vars(LLAMA), "fast_products": False}))
    assert chosen("none", LLAMA) == ()


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("fast_products", {"device": "cuda"}, "fast_products runs on cpu, and this machine trains on cuda"),
        ("row_attention", {"device": "cuda"}, "row_attention runs on cpu"),
        ("norms", {"family": "gemma"}, "norms fits model_type llama .*; found gemma"),
        ("norms", {"weights": "bfloat16"}, "norms computes in float32 only; found bfloat16"),
        ("norms", {"weights": "bfloat16", "adapter": "float32"}, "norms computes in float32 only"),
        ("fast_products", {"weights": "float64"}, "fast_products computes in float32 only"),
        ("fast_products", {"autocast": True}, "fast_products has no effect under a mixed trainer.precision"),
        ("gated_blocks", {"checkpointing": True}, "gated_blocks has no effect under activation_checkpointing=true"),
        ("gated_blocks", {"family": "gpt2"}, "gated_blocks fits model_type .*; found gpt2"),
        ("last_layer", {"family": "gpt2"}, "last_layer fits model_type"),
        ("packing", {"family": "bloom"}, "packing fits model_type .*; found bloom"),
        ("packing", {"attention": "eager"}, "packing needs attn_implementation=sdpa; found eager"),
    ],
)
def test_a_named_kernel_that_has_no_effect_is_refused_and_auto_leaves_it_out(name, change, says) -> None:
    given = Circumstances(**{**vars(LLAMA), **change})
    asked = (*KERNELS[name].needs, name)
    with pytest.raises(UserError, match=f"^model.kernels: {says}.*; leave it out, or choose model.kernels=auto$"):
        chosen(asked, given)
    assert name not in chosen("auto", given)
    assert name not in chosen(asked, given, only_fitting=True)
    assert chosen(asked, LLAMA) == tuple(kernel for kernel in KERNELS if kernel in asked)


def test_what_needs_a_kernel_that_is_left_out_is_left_out() -> None:
    eager = Circumstances(**{**vars(LLAMA), "attention": "eager"})
    assert chosen("auto", eager) == ("gated_blocks", "fast_products", "norms")
    assert chosen(("packing", "last_layer"), eager, only_fitting=True) == ()


def test_an_adapter_in_float32_is_enough_for_products() -> None:
    halves = Circumstances(**{**vars(LLAMA), "weights": "bfloat16", "adapter": "float32"})
    assert chosen(("fast_products",), halves) == ("fast_products",)


def test_each_kernel_has_its_module_and_its_line_in_the_docs() -> None:
    folder = Path(rlhf_lightning.__file__).parent / "kernels"
    assert {file.stem for file in folder.glob("*.py")} >= set(KERNELS)
    page = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    lines = re.findall(r"(?m)^\| `(\w+)` \| (.+?) \| (.+?) \| (.+?) \|$", page.split("## Kernels")[1].split("\n## ")[0])
    assert lines == [
        (kernel.name, kernel.replaces, kernel.measured, ", ".join(kernel.auto)) for kernel in KERNELS.values()
    ]
