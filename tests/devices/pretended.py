"""A pretended CUDA device: real code and real numbers, without a GPU.

    import tests.devices.pretended as pretended     # before torch
    with pretended.device() as waits:
        torch.ones(3, device="cuda"); Trainer(accelerator="cuda").fit(...)

What torch takes for a tensor on `cuda:0` (with CUDA's dispatch keys, autograd and autocast) wraps a CPU tensor, on
which every operation is computed. As on a GPU it is an error to mix devices, to draw with a generator of another
device, to call `.numpy()`, and, under deterministic algorithms, to use an operation without a deterministic version.
Everything that makes the host wait for the device is counted by line.

It says nothing about CUDA's kernels: the dtypes and shapes that they accept, their speed, their memory. There is one
device and one stream, and attention is computed in its mathematical form. 4-bit weights cannot be put there:
bitsandbytes makes a tensor an object of its own subclass, which torch refuses if the tensor already has a subclass.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.devices.waits import Waits

SOURCE = Path(__file__).with_name("accelerator.cpp")


def build() -> Path:
    """Compile the code that registers the device with torch; once for each version of torch."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    torch_folder = Path(spec.origin).parent
    version = (torch_folder / "version.py").read_bytes()
    key = hashlib.sha256(SOURCE.read_bytes() + version + str(torch_folder).encode()).hexdigest()[:16]
    library = Path(tempfile.gettempdir()) / f"pretended_cuda_{os.getuid()}_{key}.so"
    if not library.is_file():
        fresh = library.with_suffix(f".{os.getpid()}")
        paths = [f"-I{torch_folder}/include", f"-L{torch_folder}/lib", f"-Wl,-rpath,{torch_folder}/lib"]
        flags = ["-std=c++20", "-shared", "-fPIC", *paths]
        subprocess.run(["g++", *flags, SOURCE, "-o", fresh, "-lc10", "-ltorch_cpu"], check=True)
        fresh.replace(library)
    return library


assert "torch" not in sys.modules, "import tests.devices.pretended before torch, which registers its devices once"
ctypes.CDLL(str(build()))

import torch  # noqa: E402
import torch._dynamo  # noqa: E402  # keeps the functions that are replaced below

with contextlib.suppress(ImportError):  # would look for a CUDA library if it saw the device
    import bitsandbytes  # noqa: F401
from torch.multiprocessing.reductions import StorageWeakRef  # noqa: E402
from torch.optim import optimizer as optimizers  # noqa: E402
from torch.utils import _foreach_utils  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

aten: Any = torch.ops.aten
CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")
COPIES = ("copy_", "copy", "_to_copy", "_foreach_copy_")
INDEXED = ("index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_")
SIZED = ("nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive", "bincount")
SIZED += ("masked_scatter_backward",)
# For torch.use_deterministic_algorithms: operations that raise on CUDA, and kthvalue and median, which raise too.
ALWAYS_RANDOM = ("put_", "histc", "kthvalue", "median", "nll_loss2d_forward", "max_unpool2d", "max_unpool3d")

waits = Waits()


class Tensor(torch.Tensor):
    """A tensor on the device; its numbers are in `host`."""

    host: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host: torch.Tensor) -> Tensor:
        stand_in = torch.empty(0, dtype=host.dtype, device="meta")
        stand_in.set_(_shared_storage(host), host.storage_offset(), host.shape, host.stride())
        made: Any = torch.Tensor._make_subclass(
            cls, stand_in, False, dispatch_device=True, device_for_backend_keys=CUDA
        )
        made.host = host
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})

    @property
    def data(self) -> Any:
        return Tensor(self.host.detach())

    @data.setter
    def data(self, value: Any) -> None:
        torch.Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.host = value.host

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, **kwargs: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    __array__ = numpy

    def __repr__(self, **kwargs: Any) -> str:
        return f"cuda:{self.host!r}"

    def __reduce_ex__(self, protocol: Any) -> Any:
        with torch._C._DisableTorchDispatch():
            host = self.host.detach()
            _saved_from_device.add(host.untyped_storage()._cdata)
            plain = torch.nn.Parameter(host, self.requires_grad) if isinstance(self, torch.nn.Parameter) else host
            return plain.__reduce_ex__(protocol)


_storages: dict[int, tuple[StorageWeakRef, torch.UntypedStorage]] = {}
_saved_from_device: set[int] = set()


def _shared_storage(host: torch.Tensor) -> torch.UntypedStorage:
    """Return the storage that represents that of `host`: views must share theirs too."""
    storage = host.untyped_storage()
    known = _storages.get(storage._cdata)
    if known is None or known[0].expired():
        if len(_storages) > 10_000:
            for key in [key for key, (reference, _) in list(_storages.items()) if reference.expired()]:
                del _storages[key]
        known = StorageWeakRef(storage), torch.UntypedStorage(storage.nbytes(), device="meta")
        _storages[storage._cdata] = known
    return known[1]


PlainGenerator = torch.Generator
_devices_of_generators: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


class Generator(PlainGenerator):
    """Draws the CPU's numbers under the name of its device."""

    device: Any = None

    def __new__(cls, device: Any = "cpu") -> Generator:
        made = super().__new__(cls, "cpu")
        made.device = CUDA if torch.device(device).type == "cuda" else CPU
        _devices_of_generators[made._cdata] = made  # an operation sees a different Python object
        return made


class _DefaultGenerator:
    """The device's own generator, which draws if none is given."""

    def __init__(self) -> None:
        self.state = PlainGenerator().manual_seed(0).get_state()

    def set(self, state: Any, device: Any = 0) -> None:
        if device not in (0, "cuda", "cuda:0", CUDA):
            raise RuntimeError(f"CUDA error: invalid device ordinal ({device})")
        assert state.device.type == "cpu", "RNG state must be a torch.ByteTensor"
        self.state = state.clone()

    def seed(self, seed: int) -> None:
        self.state = PlainGenerator().manual_seed(int(seed)).get_state()

    @contextlib.contextmanager
    def drawing(self) -> Iterator[None]:
        host = torch.default_generator.get_state()
        torch.default_generator.set_state(self.state)
        try:
            yield
        finally:
            self.state = torch.default_generator.get_state()
            torch.default_generator.set_state(host)


default_generator = _DefaultGenerator()


@functools.cache
def _is_composite(func: Any) -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"))


def compute(func: Any, args: Any, kwargs: Any) -> Any:
    """Compute one operation with a tensor, or a result, on the device."""
    name = func.overloadpacket.__name__
    if func is torch.ops.prim.device.default:
        return CUDA
    if name == "_pin_memory":
        return args[0]
    if _is_composite(func):
        with MODE:
            out = func.decompose(*args, **kwargs)
        if out is not NotImplemented:
            return out
    flat = _leaves((args, kwargs), [])
    ours = [x for x in flat if isinstance(x, Tensor)]
    asked = kwargs.get("device")
    target = ("cuda" if ours else "cpu") if asked is None else torch.device(asked).type
    _check_devices(func, name, args, flat, ours)
    generators = [x for x in flat if isinstance(x, PlainGenerator)]
    for generator in generators:
        kind = _devices_of_generators.get(generator._cdata, generator).device.type
        if kind != target:
            raise RuntimeError(f"Expected a '{target}' device type for generator but found '{kind}' ({func})")
    if ours and torch.are_deterministic_algorithms_enabled():
        _check_determinism(func, name, args, kwargs)
    _count(func, name, args, kwargs, bool(ours), target)
    host_args, host_kwargs = _on_host(args, kwargs, target)
    crosses = name == "_to_copy" and (target == "cuda") != bool(ours)
    if crosses:
        host_kwargs["device"] = None
    if name == "histc" and not host_args[0].is_floating_point():  # not available on the CPU
        return Tensor(func(host_args[0].double(), *host_args[1:], **host_kwargs).to(host_args[0].dtype))
    draws = target == "cuda" and torch.Tag.nondeterministic_seeded in func.tags and not generators
    with default_generator.drawing() if draws else contextlib.nullcontext():
        out = func(*host_args, **host_kwargs)
    if crosses and out is host_args[0]:
        out = out.clone()
    if target != "cuda":
        return out
    waits.operations += 1
    same = {id(x.host): x for x in ours}  # what is changed in place stays the same object

    def on_device(x: Any) -> Any:
        if not isinstance(x, torch.Tensor) or isinstance(x, Tensor):
            return x
        return same[id(x)] if id(x) in same else Tensor(x)

    return _mapped(on_device, out)


def _on_host(args: Any, kwargs: Any, target: str) -> tuple[Any, Any]:
    kwargs = dict(kwargs)
    if target == "cuda" and kwargs.get("device") is not None:
        kwargs["device"] = CPU
    if kwargs.get("pin_memory"):
        kwargs["pin_memory"] = False
    host: tuple[Any, Any] = _mapped(lambda x: x.host if isinstance(x, Tensor) else x, (args, kwargs))
    return host


def _leaves(x: Any, found: list[Any]) -> list[Any]:
    """Return an operation's arguments, without the lists around them; torch's own functions for it are slow."""
    if isinstance(x, list | tuple):
        for each in x:
            _leaves(each, found)
    elif isinstance(x, dict):
        for each in x.values():
            _leaves(each, found)
    else:
        found.append(x)
    return found


def _mapped(change: Callable[[Any], Any], x: Any) -> Any:
    if isinstance(x, list | tuple):
        return type(x)([_mapped(change, each) for each in x])
    if isinstance(x, dict):
        return {key: _mapped(change, each) for key, each in x.items()}
    return change(x)


def _check_devices(func: Any, name: str, args: Any, flat: list[Any], ours: list[Tensor]) -> None:
    if not ours or name in COPIES:
        return
    if func.namespace in ("mkldnn", "quantized"):
        raise RuntimeError(f"{func} has no kernel for CUDA")
    others = [x for x in flat if isinstance(x, torch.Tensor) and not isinstance(x, Tensor) and x.device.type == "cpu"]
    if name in INDEXED:  # indices, and a number to write, may be on the CPU
        written = args[2] if len(args) > 2 else None
        wrong = not isinstance(args[0], Tensor) or (written is not None and written.is_cpu and written.dim() > 0)
        wrong = wrong and bool(others)
    else:
        wrong = any(x.dim() for x in others)
        if others and not wrong:
            waits.note(f"a number on the CPU in {name}")
    if wrong:
        found = [(tuple(x.shape), x.device.type) for x in [*ours, *others]]
        raise RuntimeError(f"Expected all tensors to be on the same device, found cuda:0 and cpu in {func}: {found}")


def _check_determinism(func: Any, name: str, args: Any, kwargs: Any) -> None:
    floats = name in ("cumsum", "cumsum_") and (kwargs.get("dtype") or args[0].dtype).is_floating_point
    weighted = name == "bincount" and len(args) > 1 and args[1] is not None
    product = name.startswith("scatter_reduce") and "prod" in args
    if name in ALWAYS_RANDOM or floats or weighted or product:
        raise RuntimeError(
            f"{name}_cuda does not have a deterministic implementation, but you set "
            "'torch.use_deterministic_algorithms(True)'"
        )


def _count(func: Any, name: str, args: Any, kwargs: Any, reads: bool, target: str) -> None:
    if name in ("copy_", "copy", "_to_copy"):
        source = args[0] if name == "_to_copy" else args[1]
        to = target if name == "_to_copy" else ("cuda" if isinstance(args[0], Tensor) else "cpu")
        crosses = isinstance(source, Tensor) != (to == "cuda") and source.device.type != "meta"
        # From memory that is not pinned, the host waits only for the copy, not for the device's queued work.
        if crosses and not (kwargs.get("non_blocking") or (len(args) > 2 and args[2])):
            waits.add("send" if to == "cuda" else "read", name)
    elif not reads:
        return
    elif name in ("_local_scalar_dense", "equal", "is_nonzero", "allclose"):
        waits.add("read", "item" if name == "_local_scalar_dense" else name)
    elif name in SIZED or (func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None):
        waits.add("size", name)
    elif name in INDEXED:
        _count_indexing(name, args)


def _count_indexing(name: str, args: Any) -> None:
    indices = [index for index in args[1] if index is not None]
    masks = any(index.dtype in (torch.bool, torch.uint8) for index in indices)
    fills = len(args) > 2 and args[2].dim() == 0 and len(args[1]) == 1 and not (len(args) > 3 and args[3])
    if masks and not fills:
        waits.add("size", f"{name} by a mask")
    if any(not isinstance(index, Tensor) for index in indices):
        waits.add("send", f"{name} by indices of the CPU")


class Mode(TorchDispatchMode):
    """Sees every operation, including those that only create a tensor."""

    _mode_key = torch._C._TorchDispatchModeKey.FAKE  # torch leaves CUDA alone under it

    @classmethod
    def is_infra_mode(cls) -> bool:
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


MODE = Mode()


class Properties:
    """torch.cuda.get_device_properties."""

    name, gcnArchName = "Pretended", ""  # noqa: N815  # torch's names
    major, minor, multi_processor_count, total_memory = 9, 0, 132, 80 * 2**30


@contextlib.contextmanager
def device() -> Iterator[Waits]:
    """Pretend the device until the end of the block; yield the counter of waits."""
    _replace_cuda()
    torch.Generator = torch._C.Generator = Generator  # type: ignore[misc, assignment]
    for module in (optimizers, _foreach_utils):
        module._foreach_supported_types.append(Tensor)
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda") is then seen to copy
    torch.__future__.set_swap_module_params_on_conversion(True)
    torch.serialization.register_package(
        1, lambda storage: "cuda:0" if storage._cdata in _saved_from_device else None, _restore
    )
    with torch.autograd.set_multithreading_enabled(False), MODE:
        yield waits


def _restore(storage: Any, location: str) -> Any:
    if location.startswith("cuda"):
        waits.note("torch.load of a CUDA tensor without map_location")
        return storage
    return None


def _replace_cuda() -> None:
    """Let torch.cuda's functions answer for the device."""
    nothing, zero = (lambda *args, **kwargs: None), (lambda *args, **kwargs: 0)

    def synchronize(*args: Any, **kwargs: Any) -> None:
        waits.add("sync", "synchronize")

    cuda: Any = torch.cuda
    yes = ("is_available", "is_initialized", "is_bf16_supported")
    no = ("set_device", "init", "_lazy_init", "empty_cache", "seed_all", "reset_peak_memory_stats")
    zeros = ("current_device", "memory_allocated", "max_memory_allocated", "memory_reserved", "_exchange_device")
    answers = {
        **dict.fromkeys(yes, lambda *args, **kwargs: True),
        **dict.fromkeys(no, nothing),
        **dict.fromkeys((*zeros, "_maybe_exchange_device"), zero),
        "device_count": lambda: 1,
        "get_device_properties": lambda *args: Properties,
        "get_device_name": lambda *args: Properties.name,
        "get_device_capability": lambda *args: (Properties.major, Properties.minor),
        "is_current_stream_capturing": lambda: False,
        "memory_stats": lambda *args: {},
        "synchronize": synchronize,
        "manual_seed": default_generator.seed,
        "manual_seed_all": default_generator.seed,
        "get_rng_state": lambda *args: default_generator.state.clone(),
        "set_rng_state": default_generator.set,
        "get_rng_state_all": lambda: [default_generator.state.clone()],
        "set_rng_state_all": lambda states: [default_generator.set(state, i) for i, state in enumerate(states)],
    }
    for name, answer in answers.items():
        setattr(cuda, name, answer)
    cuda.random.get_rng_state, cuda.random.set_rng_state = cuda.get_rng_state, cuda.set_rng_state
    accelerator: Any = torch.accelerator
    accelerator.synchronize, accelerator.current_device_index = synchronize, zero
    submit = ThreadPoolExecutor.submit

    def submit_inside(self: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        def inside() -> Any:
            with Mode():
                return function(*args, **kwargs)

        return submit(self, inside)

    ThreadPoolExecutor.submit = submit_inside  # type: ignore[method-assign, assignment]  # a mode is of one thread
