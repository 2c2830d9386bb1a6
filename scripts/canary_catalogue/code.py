"""Code in model folders, pickles instead of data, and files that shadow packages."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

from bad_input_catalogue.case import DPO, EVALUATE, PPO, SFT, changed, writes
from bad_input_catalogue.fixtures import edit_json

from canary_catalogue.canary import FIRES, Canary, all_of, bare_pickle, pickled
from canary_catalogue.controls import imports, reads, replace, runs, trusting, unpickles, unpickling

OWN = "model/own.py", FIRES + "raise RuntimeError('it ran')\n"
TYPED = b"y\n" * 20
USES = {
    "train": SFT,
    "plan": ["experiment=sft", "model.path=model"],
    "chat": ["model=model", "max_new_tokens=2"],
    "evaluate": EVALUATE,
}
REWARD = changed(PPO, "reward.function=null", "reward.model=model")
ASKS = {
    "model": edit_json(
        "model/config.json",
        auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"},
        model_type="own",
        architectures=["Own"],
    ),
    "known model": edit_json("model/config.json", auto_map={"AutoModelForCausalLM": "own.Model"}),
    "tokenizer": edit_json(
        "model/tokenizer_config.json",
        auto_map={"AutoTokenizer": ["own.Tokenizer", "own.Tokenizer"]},
        tokenizer_class="Own",
    ),
}


def fake_kernels(folder: Path) -> None:
    """Install a fake of the package that downloads attention from the hub: it fires when called."""
    import transformers.modeling_utils as modeling

    kernels = ModuleType("kernels")
    kernels.get_kernel = lambda *_, **__: exec(FIRES)  # type: ignore[attr-defined]
    sys.modules["kernels"] = kernels
    modeling.lazy_import_flash_attention = lambda *_, **__: exec(FIRES)
    edit_json("model/config.json", _attn_implementation="evil/kernel")(folder)


def trusts_kernels(folder: Path) -> None:
    """Accept kernels from the hub."""
    import rlhf_lightning.models.loading  # noqa: F401

    replace("rlhf_lightning.models.foreign_folders", "check_foreign_folder", lambda *_, **__: None)


def generates_by_its_own_code(folder: Path) -> None:
    """Let transformers read the folder's `custom_generate` as if it were trusted."""
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(folder / "model", trust_remote_code=True)


def megatron(folder: Path) -> None:
    """Write an adapter that names a module to import."""
    edit_json("adapter/adapter_config.json", megatron_config={"a": 1}, megatron_core="canary_module")(folder)
    writes("canary_module.py", FIRES)(folder)


def sharded(folder: Path) -> None:
    """Write a sharded checkpoint whose index is a pickle of something else."""
    bare_pickle("shards/.metadata")(folder)
    pickled("shards/meta.pt")(folder)
    (folder / "shards/__0_0.distcp").write_bytes(b"0")


CODE = [
    Canary(
        f"code of a {part}, {command}",
        command,
        words,
        all_of(writes(*OWN), ASKS[part]),
        typed=TYPED,
        control=trusting,
        fast=(part, command) in {("model", "chat")},
    )
    for part in ASKS
    for command, words in USES.items()
    if command != "plan" or part == "model"  # a plan reads only config.json
] + [
    Canary(
        "code of a reward model", "train", REWARD, all_of(writes(*OWN), ASKS["model"]), typed=TYPED, control=trusting
    ),
    Canary(
        "code of a policy beside others",
        "evaluate",
        changed(EVALUATE, "policies={a: scorer, b: model}", "baseline=b"),
        all_of(writes(*OWN), ASKS["model"], lambda folder: (folder / "scorer").rename(folder / "other")),
        typed=TYPED,
        control=reads(lambda folder: exec((folder / "model/own.py").read_text().partition("raise")[0])),
    ),
    Canary(
        "code of an adapter's base",
        "train",
        changed(SFT, "model.path=adapter"),
        all_of(writes(*OWN), ASKS["model"]),
        typed=TYPED,
        control=trusting,
    ),
    Canary(
        "code of an adapter's base, chat",
        "chat",
        ["model=adapter", "max_new_tokens=2"],
        all_of(writes(*OWN), ASKS["known model"]),
        typed=TYPED,
        control=trusting,
    ),
    Canary(
        "code of a processor",
        "train",
        SFT,
        all_of(
            writes(*OWN),
            writes("model/processor_config.json", json.dumps({"auto_map": {"AutoProcessor": "own.P"}})),
        ),
        typed=TYPED,
        control=runs("model/own.py"),
    ),
    Canary(
        "a folder's own generate, chat",
        "chat",
        ["model=model", "max_new_tokens=2"],
        all_of(writes("model/custom_generate/generate.py", FIRES + "def generate(model, **more): pass\n")),
        typed=b"how\n" + TYPED,
        control=reads(generates_by_its_own_code),
    ),
    Canary("attention of the hub", "train", SFT, fake_kernels, control=trusts_kernels),
    Canary("attention of the hub, chat", "chat", ["model=model"], fake_kernels, control=trusts_kernels),
    Canary(
        "a module that an adapter names",
        "train",
        changed(SFT, "model.path=adapter"),
        megatron,
        control=imports("canary_module"),
    ),
]


def only_pickled_weights(name: str, folder: Path) -> None:
    """Write a model or an adapter with pickled weights."""
    kind = "adapter_model" if name == "adapter" else "model"
    (folder / name / f"{kind}.safetensors").unlink()
    pickled(f"{name}/{'adapter_model' if name == 'adapter' else 'pytorch_model'}.bin")(folder)


def pickled_shards(folder: Path) -> None:
    """Write weights in several pickled files."""
    (folder / "model/model.safetensors").unlink()
    pickled("model/pytorch_model-00001-of-00001.bin")(folder)
    weight_map = {"model.embed_tokens.weight": "pytorch_model-00001-of-00001.bin"}
    writes("model/pytorch_model.bin.index.json", json.dumps({"metadata": {}, "weight_map": weight_map}))(folder)


PICKLES = [
    Canary(
        "pickle as weights", "train", SFT, lambda f: only_pickled_weights("model", f), control=unpickling, fast=True
    ),
    Canary(
        "pickle as weights, chat",
        "chat",
        ["model=model"],
        lambda f: only_pickled_weights("model", f),
        control=unpickling,
    ),
    Canary(
        "pickle as weights, evaluate",
        "evaluate",
        EVALUATE,
        lambda f: only_pickled_weights("model", f),
        control=unpickling,
    ),
    Canary("pickles as weights in parts", "train", SFT, pickled_shards, control=unpickling),
    Canary(
        "pickle as checkpoint", "train", [*SFT, "ckpt=bad.ckpt", "run_dir=new"], pickled("bad.ckpt"), control=unpickling
    ),
    Canary(
        "bare pickle as checkpoint",
        "train",
        [*SFT, "ckpt=bad.ckpt", "run_dir=new"],
        bare_pickle("bad.ckpt"),
        control=unpickling,
    ),
    Canary(
        "pickle as last checkpoint",
        "train",
        [*SFT, "ckpt=last", "run_dir=new"],
        pickled("new/checkpoints/last.ckpt"),
        control=unpickling,
    ),
    Canary(
        "pickle as a sharded checkpoint",
        "train",
        [*SFT, "ckpt=shards", "run_dir=new"],
        sharded,
        control=unpickles("shards/.metadata"),
    ),
    Canary(
        "pickle as reference table",
        "train",
        [*DPO, "algorithm.precompute_reference=true", "run_dir=new"],
        pickled("new/reference_logprobs.pt"),
        control=unpickling,
    ),
    Canary(
        "pickle as adapter",
        "train",
        changed(SFT, "model.path=adapter"),
        lambda f: only_pickled_weights("adapter", f),
        control=unpickling,
    ),
    Canary(
        "pickle as adapter, chat",
        "chat",
        ["model=adapter"],
        lambda f: only_pickled_weights("adapter", f),
        control=unpickling,
    ),
] + [
    Canary(f"pickle as {name}", "train", words, bare_pickle(path), control=unpickles(path))
    for name, path, words in (
        ("training arguments", "model/training_args.bin", SFT),
        ("optimizer", "model/optimizer.pt", SFT),
        ("rows", "rows.pkl", changed(SFT, "data.train=rows.pkl")),
        ("a table of numpy", "rows.npy", changed(SFT, "data.train=rows.npy")),
        ("a Parquet file", "rows.parquet", changed(SFT, "data.train=rows.parquet")),
        ("a file of a folder", "rows/train.pkl", changed(SFT, "data.train=rows")),
        ("a tokenizer", "model/tokenizer.pkl", SFT),
        ("vocabulary", "model/vocab.pkl", SFT),
    )
]

SHADOWS = [
    Canary(
        f"a file named {name}.py, {command}",
        command,
        words,
        writes(f"{name}.py", FIRES),
        control=imports(name),
        fast=(name, command) == ("sentencepiece", "train"),
    )
    for command, words, names in (
        (
            "train",
            SFT,
            (
                *("sentencepiece", "tiktoken", "flash_attn", "deepspeed", "wandb", "git", "json", "sitecustomize"),
                *("mlflow_skinny", "kernels", "optimum", "gptqmodel", "einops", "usercustomize", "apex", "xformers"),
            ),
        ),
        ("chat", ["model=model", "max_new_tokens=2"], ("sentencepiece", "tiktoken", "kernels", "IPython", "google")),
        ("evaluate", EVALUATE, ("sentencepiece", "seaborn", "tiktoken", "ipywidgets", "jupyter")),
        ("plan", USES["plan"], ("sentencepiece", "tiktoken", "vllm")),
        ("export", ["run=run", "to=out"], ("sentencepiece", "tiktoken")),
    )
    for name in names
]
