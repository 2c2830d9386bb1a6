"""Only modules in `compat` use private names of other libraries, and each name still exists as relied on.

These tests are the first to break if a new version has changed one: docs/dependencies.md.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import rlhf_lightning
from rlhf_lightning.compat import hydra_names, lightning_names, torch_names, transformers_names

PACKAGE = Path(rlhf_lightning.__file__).parent
FILES = [file for file in sorted(PACKAGE.rglob("*.py")) if "conf" not in file.relative_to(PACKAGE).parts]
OF_PYTHON = {"os._exit", "sys._getframe"}  # its documentation describes both
ACCESS = {"getattr", "setattr", "hasattr", "delattr"}


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def made_in(tree: ast.Module) -> set[str]:
    """Return private names that a file defines itself: functions, classes, variables and attributes of `self`."""
    made = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            made.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            made.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and on_itself(node):
            made.add(node.attr)
    return {name for name in made if private(name)}


def on_itself(node: ast.Attribute) -> bool:
    value = node.value.func if isinstance(node.value, ast.Call) else node.value
    return getattr(value, "id", None) in ("self", "cls", "super")


def foreign_names(tree: ast.Module, own: set[str]) -> Iterator[str]:
    """Yield private names of others in a file; `own` are those that the package defines."""
    here = made_in(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr) and ast.unparse(node) not in OF_PYTHON:
            if node.attr not in (here | own if on_itself(node) else here):
                yield f"{node.lineno}: {ast.unparse(node)}"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None) or ""
            names = [f"{module}.{alias.name}".lstrip(".") for alias in node.names]
            for name in names:
                if not name.startswith("rlhf_lightning.") and any(private(part) for part in name.split(".")):
                    yield f"{node.lineno}: import {name}"
        elif isinstance(node, ast.Call) and getattr(node.func, "id", None) in ACCESS and len(node.args) > 1:
            name = node.args[1].value if isinstance(node.args[1], ast.Constant) else ""
            if private(str(name)) and name not in here | own:
                yield f"{node.lineno}: {ast.unparse(node)}"


def test_private_names_of_others_are_in_compat_alone() -> None:
    trees = {file: ast.parse(file.read_text(encoding="utf-8")) for file in FILES}
    own = set[str]().union(*map(made_in, trees.values()))
    found = [
        f"{file.relative_to(PACKAGE)}:{name}"
        for file, tree in trees.items()
        if file.parent.name != "compat"
        for name in foreign_names(tree, own)
    ]
    assert not found, "put these behind functions in rlhf_lightning/compat:\n" + "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "config._get_node('x')",
        "trainer.strategy._restore()",
        "class A(B):\n    def f(self):\n        return self._of_the_parent",
        "class A(B):\n    def f(self):\n        return super()._save()",
        "from hydra._internal.utils import get_args_parser",
        "import torch._dynamo",
        "from torch import _C",
        "getattr(config, '_commit_hash', None)",
        "setattr(optimizer, '_step', 1)",
        "optimizer._step = 1",
    ],
)
def test_a_private_name_is_seen(source: str) -> None:
    assert list(foreign_names(ast.parse(source), own=set()))


@pytest.mark.parametrize(
    "source",
    [
        "self._x = 1\nother._x",
        "def _f(): ...\n_f()",
        "from rlhf_lightning.functional._arguments import blank",
        "import os\nos._exit(1)",
        "x.__dict__",
        "for _, y in z: ...",
    ],
)
def test_names_of_our_own_are_not(source: str) -> None:
    assert not list(foreign_names(ast.parse(source), own=set()))


def test_no_class_takes_the_place_of_a_private_method_of_its_parents() -> None:
    found = []
    for file in FILES:
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] == "compat":
            continue
        module = importlib.import_module(".".join(("rlhf_lightning", *(p for p in parts if p != "__init__"))))
        for kind in vars(module).values():
            if inspect.isclass(kind) and kind.__module__ == module.__name__:
                parents = [each for each in kind.__mro__[1:] if not each.__module__.startswith("rlhf_lightning")]
                found += [
                    f"{kind.__name__}.{name}"
                    for name, value in vars(kind).items()
                    if private(name) and inspect.isfunction(value) and value.__module__ == module.__name__
                    if any(name in vars(each) for each in parents)
                ]
    assert not found, f"{found}: a new version may call them at other times; go through rlhf_lightning/compat"


# ---- each name exists, as relied on


def takes(function: Any, *names: str) -> bool:
    """Return whether a function's first parameters have these names."""
    return tuple(inspect.signature(function).parameters)[: len(names)] == names


def checkpoint() -> Any:
    return lightning_names.OpenCheckpoint(every_n_train_steps=3, save_top_k=0)


def model_checkpoint() -> Any:
    from lightning.pytorch.callbacks import ModelCheckpoint

    return ModelCheckpoint


def a_trainer() -> Any:
    from lightning.pytorch import Trainer

    return Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)


def tiny_config() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, name_or_path="x"
    )
    return LlamaForCausalLM(config).config


def unresolved() -> bool:
    from omegaconf import OmegaConf

    kept = hydra_names.without_hydra(OmegaConf.create({"a": 1, "b": "${a}", "hydra": 1}))
    return OmegaConf.to_container(kept, resolve=False) == {"a": 1, "b": "${a}"}


def sweep() -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(["a=1,2", "b=3"])
    return hydra_names.jobs_of_sweep(parsed) == [["a=1", "b=3"], ["a=2", "b=3"]]


def clipped() -> bool:
    from lightning.fabric.plugins.precision import amp

    fused = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], fused=True)
    had = bool(fused._step_supports_amp_scaling)  # type: ignore[attr-defined]
    lightning_names.let_lightning_clip(fused)
    return had and not fused._step_supports_amp_scaling and "_step_supports_amp_scaling" in inspect.getsource(amp)  # type: ignore[attr-defined]


def cast_hook() -> bool:
    class Kept(torch_names.GuardedCasts):
        def guard_casts(self) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
            return lambda before, after: before

    made = Kept()
    made.weight = nn.Parameter(torch.zeros(1))
    return all(
        cast().weight.dtype == torch.float32 for cast in (made.half, made.double, lambda: made.to(torch.float16))
    )


def written() -> bool:
    tensor = torch.zeros(1)
    before = torch_names.writes(tensor)
    tensor.add_(1)
    return torch_names.writes(tensor) == before + 1


def watched() -> bool:
    class Seen(torch_names.WatchedOperators):
        names: list[str] = []  # noqa: RUF012

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.names.append(str(func))
            return func(*args, **(kwargs or {}))

    with Seen():
        torch.zeros(2) + 1
    return any("add" in name for name in Seen.names)


def fake() -> bool:
    with torch_names.FakeTensors():
        made = torch.zeros(3) + 1
        try:
            made.sum().item()
        except torch_names.NUMBERS_ASKED:
            return made.shape == (3,)
    return False


def one_storage() -> bool:
    tensor = torch.zeros(4)
    key = torch_names.storage_key
    return key(tensor) == key(tensor[1:]) == key(tensor.detach()) != key(torch.zeros(4))


def onednn() -> bool:
    if not torch.backends.mkldnn.is_available():
        return True
    x, weight, bias = torch.randn(20, 64), torch.randn(48, 64), torch.randn(48)
    wanted = x @ weight.T + bias
    packed = torch_names.onednn_layout(weight, 20)
    found = (torch_names.onednn_linear(x, weight, bias), torch_names.onednn_linear(x, packed, bias))
    return all(torch.allclose(each, wanted, atol=1e-4) for each in found)


def softmax() -> bool:
    x, wanted = torch.randn(3, 5, requires_grad=True), torch.randn(3, 5)
    weights = x.softmax(-1)
    weights.backward(wanted)
    assert x.grad is not None
    return torch.allclose(torch_names.softmax_backward(wanted, weights.detach()), x.grad, atol=1e-6)


def sharded_reading() -> bool:
    import torch.distributed.checkpoint.default_planner as planner
    import torch.distributed.checkpoint.filesystem as filesystem

    reads = inspect.getsource(filesystem.FileSystemReader.read_metadata)
    return "pickle.load" in reads and "torch.load" in inspect.getsource(planner) and hasattr(filesystem, "pickle")


def index_names() -> bool:
    import torch.distributed.checkpoint.filesystem as filesystem

    return hasattr(filesystem, "_StorageInfo") and hasattr(filesystem, "_StoragePrefix")


def layout_name() -> bool:
    stream = io.BytesIO()
    torch.save(torch.zeros(1), stream)
    return callable(torch.serialization._get_layout)


def loaded_in_float32() -> bool:
    from transformers import PreTrainedModel

    before = PreTrainedModel._keep_in_fp32_modules_strict
    with transformers_names.loads_in_float32("score"):
        inside = PreTrainedModel._keep_in_fp32_modules_strict
    return before is None and inside == {"score"} and PreTrainedModel._keep_in_fp32_modules_strict is None


def attention() -> bool:
    config = tiny_config()
    return transformers_names.attention_of(config) == "sdpa"


def signals() -> bool:
    trainer = a_trainer()
    connector = trainer._signal_connector
    lightning_names.leave_signals_alone(trainer)
    return takes(type(connector).register_signal_handlers, "self") and connector.register_signal_handlers() is None


def saved_by_time() -> bool:
    from datetime import timedelta

    kind = model_checkpoint()
    by = lightning_names.saves_within_epochs
    return (
        by(kind(every_n_train_steps=2))
        and by(kind(train_time_interval=timedelta(1)))
        and not by(kind(every_n_epochs=1))
    )


RELIED_ON: dict[str, Callable[[], Any]] = {
    "hydra._internal.utils.get_args_parser": lambda: (
        {"overrides", "multirun", "cfg"} <= {action.dest for action in hydra_names.arguments_parser()._actions}
    ),
    "hydra._internal.core_plugins.basic_sweeper.BasicSweeper": sweep,
    "omegaconf.DictConfig._get_node": unresolved,
    "lightning Trainer._signal_connector": signals,
    "lightning Trainer._logger_connector._first_loop_iter": lambda: isinstance(
        a_trainer()._logger_connector._first_loop_iter, bool | type(None)
    ),
    "lightning training epoch loop._should_check_val_epoch": lambda: takes(
        type(a_trainer().fit_loop.epoch_loop)._should_check_val_epoch, "self"
    ),
    "lightning _step_supports_amp_scaling": clipped,
    "lightning ModelCheckpoint._every_n_train_steps": lambda: checkpoint().every_steps == 3,
    "lightning ModelCheckpoint._train_time_interval": saved_by_time,
    "lightning ModelCheckpoint._last_global_step_saved": lambda: checkpoint().last_saved_step == 0,
    "lightning ModelCheckpoint._should_skip_saving_checkpoint": lambda: checkpoint().skips(a_trainer()) is True,
    "lightning ModelCheckpoint._should_save_on_train_epoch_end": lambda: (
        checkpoint().saves_at_epoch_end(a_trainer()) in (True, False)
    ),
    "lightning ModelCheckpoint._monitor_candidates": lambda: (
        {"epoch", "step"} <= checkpoint()._monitor_candidates(a_trainer()).keys()
    ),
    "lightning ModelCheckpoint._save_topk_checkpoint": lambda: takes(
        model_checkpoint()._save_topk_checkpoint, "self", "trainer", "monitor_candidates"
    ),
    "lightning ModelCheckpoint._save_last_checkpoint": lambda: takes(
        model_checkpoint()._save_last_checkpoint, "self", "trainer", "monitor_candidates"
    ),
    "lightning ModelCheckpoint._save_checkpoint": lambda: takes(
        model_checkpoint()._save_checkpoint, "self", "trainer", "filepath"
    ),
    "torch nn.Module._apply": cast_hook,
    "torch Tensor._version": written,
    "torch.utils._python_dispatch.TorchDispatchMode": watched,
    "torch.utils._pytree.tree_leaves": lambda: (
        len(list(torch_names.tensors_in(({"a": torch.ones(1)}, [torch.ones(2)])))) == 2
    ),
    "torch._subclasses.fake_tensor.FakeTensorMode": fake,
    "torch UntypedStorage._cdata": one_storage,
    "torch.ops.mkldnn._linear_pointwise and _reorder_linear_weight": onednn,
    "torch._softmax_backward_data": softmax,
    "torch.distributed.checkpoint: pickle and torch by name": sharded_reading,
    "torch.distributed.checkpoint.filesystem._StorageInfo and _StoragePrefix": index_names,
    "torch.serialization._get_layout": layout_name,
    "transformers PretrainedConfig._attn_implementation": attention,
    "transformers PretrainedConfig._name_or_path": lambda: transformers_names.source_of(tiny_config())[0] == "x",
    "transformers PreTrainedModel._keep_in_fp32_modules_strict": loaded_in_float32,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", RELIED_ON)
def test_is_there_as_it_is_relied_on(name: str) -> None:
    assert RELIED_ON[name]()


def test_every_private_name_of_compat_has_its_test() -> None:
    told = " ".join(RELIED_ON)
    for file in (PACKAGE / "compat").glob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        here = made_in(tree) - {"_save_checkpoint", "_apply"}
        used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and private(node.attr)} - here
        used |= {
            str(node.args[1].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Call)
            and ast.unparse(node.func) in ACCESS
            and isinstance(node.args[1], ast.Constant)
        }
        missing = sorted(name for name in used if private(name) and name not in told and name != "_commit_hash")
        assert not missing, f"{file.name}: say in this file how {missing} are relied on"
