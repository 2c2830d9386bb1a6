"""rlhf-chat: talk to a model in the terminal; its answers are printed as they are drawn."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from rlhf_lightning.commands.command_line import run_hydra_command
from rlhf_lightning.config.checks import check_model, refuse_reward_model
from rlhf_lightning.config.schema import Chat
from rlhf_lightning.config.spelling import did_you_mean, nearest
from rlhf_lightning.config.validation import validate
from rlhf_lightning.errors import Terminated, blaming, named_as
from rlhf_lightning.stopping import advising, forget

COMMANDS = ("/reset", "/exit")


def main() -> None:
    """The entry point of rlhf-chat."""
    run_hydra_command("rlhf-chat", "chat", chat)


def check(config: Mapping[str, Any]) -> None:
    """Everything that can be known to be wrong without importing torch.

    Raises:
        UserError: one line about the first thing.
    """
    validate(config, Chat)
    for key in ("model", "compare_with"):
        if config.get(key) is not None:
            check_model(key, config[key])
            refuse_reward_model(key, config[key])


def chat(config: dict[str, Any]) -> None:
    """Answer line after line, until the input ends."""
    check(config)
    with advising(lambda: ""):  # nothing of it is kept
        _converse(config)


def _converse(config: Mapping[str, Any]) -> None:
    from rlhf_lightning.commands.conversation import Conversation

    settings = {
        key: config[key] for key in ("system", "temperature", "max_new_tokens", "seed", "dtype", "attn_implementation")
    }
    conversations = {}
    for key in ("model", "compare_with"):
        if config[key] is not None:
            with named_as(key), blaming(f"{key}: {config[key]} cannot be loaded"):
                conversations[config[key]] = Conversation(config[key], **settings)
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):  # not on every system
            import readline  # noqa: F401  # arrows and history in `input`
        print(f"{' and '.join(conversations)}: {', '.join(COMMANDS)}; Ctrl-C stops an answer; Ctrl-D leaves")
    for line in _lines():
        with _stopped_by_interrupt():
            _respond(line, conversations)


def _lines() -> Iterator[str]:
    """What the user says, one line each; empty ones are passed over."""
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            return
        except Terminated:
            if prompt:
                print()  # what is said of it begins a line
            raise
        if line == "/exit":
            return
        if line:
            yield line


@contextlib.contextmanager
def _stopped_by_interrupt() -> Iterator[None]:
    """On a terminal, Ctrl-C ends an answer and not the conversation, which goes on as if the line had not been said."""
    try:
        yield
    except Terminated as stop:
        if stop.signum != signal.SIGINT or not sys.stdin.isatty():
            raise
        forget()
        print()


def _respond(line: str, conversations: Mapping[str, Any]) -> None:
    if line.startswith("/") and line != "/reset":
        match = did_you_mean(nearest(line, COMMANDS))
        print(f"{line}: no such command; allowed: {', '.join(COMMANDS)}{match}")
        return
    for name, conversation in conversations.items():
        if line == "/reset":
            conversation.reset()
            continue
        if len(conversations) > 1:
            print(f"[{name}] ", end="", flush=True)
        conversation.answer(line)
