"""Errors that users can cause are blamed on their keys; this package's own bugs stay bugs."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from rlhf_lightning import errors
from rlhf_lightning.commands.command_line import as_user_error
from rlhf_lightning.errors import UserError, blaming


@pytest.mark.parametrize(
    "error",
    [KeyError("x"), SystemExit(0), KeyboardInterrupt(), GeneratorExit(), type("Own", (BaseException,), {})("mine")],
)
def test_whatever_a_call_of_the_users_raises_names_the_key(error: BaseException) -> None:
    with (
        pytest.raises(UserError, match=r"^data\.train: rows cannot be read: .*; take others$"),
        blaming("data.train: rows cannot be read", "take others"),
    ):
        raise error


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Enable Ctrl-C as in a terminal: a script's background jobs ignore it."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


@pytest.mark.usefixtures("interrupts")
def test_an_interrupt_is_nobodys_fault() -> None:
    with pytest.raises(KeyboardInterrupt), blaming("data.train"):
        signal.raise_signal(signal.SIGINT)


def test_closing_a_generator_is_nobodys_fault() -> None:
    def rows() -> Iterator[int]:
        with blaming("data.train"):
            yield 1

    given = rows()
    next(given)
    given.close()


def test_a_slip_of_our_own_code_stays_a_bug() -> None:
    exec("def slip(): return undefined", errors.__dict__)
    with pytest.raises(NameError) as raised, blaming("model.path"):
        errors.__dict__["slip"]()
    assert as_user_error(raised.value) is None
    del errors.__dict__["slip"]
