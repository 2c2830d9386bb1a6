"""rlhf-chat: talk to a model in the terminal; its answers are printed as they are generated."""

from __future__ import annotations

import contextlib
import itertools
import signal
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from rlhf_lightning.commands.command_line import run_hydra_command
from rlhf_lightning.config.best_of_checks import check_best_of
from rlhf_lightning.config.inputs import check_ilql_beta, check_model, refuse_reward_model
from rlhf_lightning.config.schema import Chat
from rlhf_lightning.config.spelling import did_you_mean, nearest
from rlhf_lightning.config.validation import validate
from rlhf_lightning.errors import Terminated, UserError, blaming, named_as
from rlhf_lightning.stopping import advising, forget

COMMANDS = ("/reset", "/exit")


def main() -> None:
    """Run rlhf-chat."""
    run_hydra_command("rlhf-chat", "chat", chat)


def check(config: Mapping[str, Any]) -> None:
    """Check everything that can be checked without importing torch.

    Raises:
        UserError: one line about the first problem.
    """
    validate(config, Chat)
    models = {key: config[key] for key in ("model", "compare_with") if config.get(key) is not None}
    for key, path in models.items():
        check_model(key, path)
        refuse_reward_model(key, path)
    check_ilql_beta(config, models)
    if (chooser := check_best_of(config)) is not None:
        check_model("reward.model", chooser)


def chat(config: dict[str, Any]) -> None:
    """Answer line after line until the input ends."""
    check(config)
    with advising(lambda: ""):  # nothing is kept
        _converse(config)


def _converse(config: Mapping[str, Any]) -> None:
    from rlhf_lightning.commands.conversation import Conversation, TooLongError

    sampling = ("temperature", "max_new_tokens", "seed", "ilql_beta")
    settings = {key: config[key] for key in ("system", *sampling, "dtype", "attn_implementation")}
    best = _best_of(config)
    conversations = {}
    for key in ("model", "compare_with"):
        if config[key] is not None:
            with named_as(key), blaming(f"{key}: {config[key]} cannot be loaded"):
                conversations[config[key]] = Conversation(config[key], best=best, **settings)
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):  # not available on every system
            import readline  # noqa: F401  # arrows and history in `input`
        print(f"{' and '.join(conversations)}: {', '.join(COMMANDS)}; Ctrl-C stops an answer; Ctrl-D leaves")
    for number, line in _lines():
        with _stopped_by_interrupt():
            try:
                _respond(line, conversations)
            except TooLongError as error:
                if not sys.stdin.isatty():
                    raise UserError(f"line {number} of the input: {error}") from error
                print(error)


def _best_of(config: Mapping[str, Any]) -> Any:
    """Return how answers are chosen among several, and print how far that is from the model; None: they are not."""
    if config["best_of"] is None:
        return None
    from rlhf_lightning.evaluation.best_of_n import bound_line
    from rlhf_lightning.evaluation.sampling import BestOf
    from rlhf_lightning.rewards import make_reward

    with named_as("reward.model"):
        best = BestOf(config["best_of"], make_reward(**config["reward"]))
    print(bound_line(best.n))
    return best


def _lines() -> Iterator[tuple[int, str]]:
    """Yield number and text of the user's lines, skipping empty ones.

    Raises:
        UserError: a line is not UTF-8.
    """
    prompt = "> " if sys.stdin.isatty() else ""
    for number in itertools.count(1):
        try:
            line = input(prompt).strip()
            line.encode()  # a terminal or a locale may put surrogates in place of other bytes
        except EOFError:
            return
        except UnicodeError as error:
            raise UserError(f"line {number} of the input is not UTF-8; convert it to UTF-8") from error
        except Terminated:
            if prompt:
                print()  # so that the next message begins on a new line
            raise
        if line == "/exit":
            return
        if line:
            yield number, line


@contextlib.contextmanager
def _stopped_by_interrupt() -> Iterator[None]:
    """On a terminal, let Ctrl-C end only the answer: the conversation goes on as if the line had not been entered."""
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
