"""Fixtures and settings of all tests."""

import os
import signal
import sys
from collections.abc import Iterator

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before any import of the hub's client, and for the commands that tests start

# A shell ignores Ctrl-C for background jobs, and so would the commands that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

KEPT: set[str] = set()  # modules that no test has made


@pytest.fixture(autouse=True)
def same_signal_handlers() -> Iterator[None]:
    """Take back signal handlers that a test has set; the commands' own, which have a thread, it must have ended."""
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    stopping = sys.modules.get("rlhf_lightning.stopping")
    assert stopping is None or not stopping._former, "this test listens for signals for good"
    for number, handler in former.items():
        if handler is not None:
            signal.signal(number, handler)


@pytest.fixture(autouse=True)
def same_modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Forget the modules that a test has made and where it has found them: the next one may use the same names."""
    finders, path = list(sys.meta_path), list(sys.path)
    yield
    sys.meta_path[:], sys.path[:] = finders, path
    made = f"{tmp_path_factory.getbasetemp()}{os.sep}"
    for name in sys.modules.keys() - KEPT:  # all of them are thousands, and looking at each takes 50 ms
        if str(getattr(sys.modules[name], "__file__", "")).startswith(made):
            del sys.modules[name]
        else:
            KEPT.add(name)
