"""Prompts and completions as the text a model sees: strings as they are, messages through the chat template."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rlhf_lightning.data.messages import (
    Message,
    Options,
    Text,
    check_read,
    check_rendered,
    checked_text,
    spellings,
)
from rlhf_lightning.data.template_limits import StoppedError, check_size, running
from rlhf_lightning.errors import UserError

NO_OPTIONS: Options = {}


def is_conversational(text: Text) -> bool:
    """Return whether it is a list of messages rather than a string."""
    return not isinstance(text, str)


def chat_template(tokenizer: Any, options: Options = NO_OPTIONS) -> str:
    """Return the tokenizer's chat template; if it has several, the one for `options` (there may be one for tools).

    Raises:
        UserError: it has none.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"the rows hold messages, and the tokenizer of {_name(tokenizer)} has no chat template; use a chat model, "
            "set `chat_template` in its tokenizer_config.json, or turn the messages into plain strings"
        )
    return str(tokenizer.get_chat_template(tools=options.get("tools")))


def render_prompt(tokenizer: Any, prompt: Text, options: Options = NO_OPTIONS) -> str:
    """Return the text that generation starts from.

    A string is unchanged. Messages are rendered by the chat template with its generation prompt; if the last one is the
    assistant's, that message is left open, to be continued. `options` is what else the template receives, such as
    `tools` (see `template_options`).
    """
    if isinstance(prompt, str):
        return prompt
    chat_template(tokenizer)
    if prompt and prompt[-1].get("role") == "assistant":
        return _apply(tokenizer, prompt, options, continue_final_message=True)
    return _apply(tokenizer, prompt, options, add_generation_prompt=True)


def render_completion(
    tokenizer: Any,
    prompt: Text,
    completion: Text,
    *,
    ended: bool = True,
    before: str | None = None,
    options: Options = NO_OPTIONS,
) -> str:
    """Return the text that follows `render_prompt(tokenizer, prompt)`.

    Plain prompt: the completion itself. Conversational prompt: exactly what the template adds after the generation
    prompt. A string is then the content of one assistant message, so a sampled response is rendered like a training
    row. With `ended=False` the message is left open: no end-of-turn marker. `before` is the rendered prompt, if known.

    Raises:
        UserError: a conversational completion to a plain prompt, or a template that renders the conversation
            differently from its own generation prompt.
    """
    if isinstance(prompt, str):
        if not isinstance(completion, str):
            raise UserError("a plain prompt has messages as its completion; both must be strings, or both messages")
        return completion
    before = render_prompt(tokenizer, prompt, options) if before is None else before
    if isinstance(completion, str):
        if prompt and prompt[-1].get("role") == "assistant":  # continues an open message
            opened, prompt = prompt[-1], prompt[:-1]
            completion = [{**opened, "content": opened["content"] + completion}]
        else:
            completion = [{"role": "assistant", "content": completion}]
    whole = _apply(tokenizer, [*prompt, *completion], options, continue_final_message=not ended)
    if not whole.startswith(before):
        raise UserError(
            f"the chat template of {_name(tokenizer)} renders an answered conversation differently from the prompt it "
            f"starts generation with (expected ...{before[-40:]!r}); a model would train on one and be asked the "
            "other; fix the template, or give the rows as plain strings"
        )
    return whole[len(before) :]


def render_conversation(tokenizer: Any, messages: list[Message], options: Options = NO_OPTIONS) -> str:
    """Return all messages as the chat template renders them, without a generation prompt."""
    chat_template(tokenizer)
    return _apply(tokenizer, messages, options)


def assistant_tokens(
    tokenizer: Any, messages: list[Message], options: Options = NO_OPTIONS
) -> tuple[list[int], list[int]]:
    """Return token ids of a conversation, and a mask that is 1 on what the assistant wrote.

    The template's `{% generation %}` block marks what the assistant wrote.

    The EOS after an assistant's turn counts as the assistant's, whether or not the block covers it. What follows the
    last turn's EOS is cut off; if that turn has none, one is added.

    Raises:
        UserError: the template has no such block, or no message is the assistant's.
    """
    template = chat_template(tokenizer, options)
    if not re.search(r"{%-?\s*generation\b", template):
        raise UserError(
            f"data.loss_on=assistant: the chat template of {_name(tokenizer)} does not mark what the assistant writes; "
            "put {% generation %} ... {% endgeneration %} around it in the template, or use data.loss_on=completion"
        )
    _, given = _render(tokenizer, messages, options)  # includes its checks
    with _running(template, _name(tokenizer), given):
        encoded = tokenizer.apply_chat_template(
            given,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            tokenizer_kwargs={"verbose": False},
            **options,
        )
    ids, mask = list(encoded["input_ids"]), list(encoded["assistant_masks"])
    if not any(mask):
        raise UserError(
            "data.loss_on=assistant: no message is the assistant's, so nothing would be learned from the row"
        )
    eos = tokenizer.eos_token_id
    for position in range(1, len(ids)):
        if ids[position] == eos and mask[position - 1] and ids[position - 1] != eos:
            mask[position] = 1
    last = max(position for position, flag in enumerate(mask) if flag)
    end = last  # the block may also cover white space that the template puts after the EOS
    while mask[end] and ids[end] != eos and not tokenizer.decode(ids[end]).strip():
        end -= 1
    last = end if mask[end] and ids[end] == eos else last
    ids, mask = ids[: last + 1], mask[: last + 1]
    return (ids, mask) if ids[-1] == eos else ([*ids, eos], [*mask, 1])


def _apply(tokenizer: Any, messages: list[Message], options: Options, **flags: bool) -> str:
    return _render(tokenizer, messages, options, **flags)[0]


def _render(tokenizer: Any, messages: list[Message], options: Options, **flags: bool) -> tuple[str, list[Message]]:
    """Return the template's output, and the messages as they were given to it."""
    checked = checked_text("messages", messages)
    assert not isinstance(checked, str)
    refused: UserError | None = None
    for way in spellings(checked):
        try:
            return _rendered(tokenizer, way, options, **flags), way
        except StoppedError:
            raise
        except UserError as error:
            refused = refused or error
    assert refused is not None
    raise refused


def _rendered(tokenizer: Any, messages: list[Message], options: Options, **flags: bool) -> str:
    template, name = chat_template(tokenizer, options), _name(tokenizer)

    def render(given: list[Message]) -> str:
        return str(tokenizer.apply_chat_template(given, tokenize=False, **options, **flags))

    with _running(template, name, messages):
        rendered = render(messages)
        check_size(rendered, messages)
        check_read(messages, options, template, name, render)
    check_rendered(messages, options, rendered, name)
    return rendered


@contextmanager
def _running(template: str, name: str, messages: list[Message]) -> Iterator[None]:
    """Run a chat template within its limits, with its errors reported in one line."""
    try:
        with running(template):
            yield
    except UserError:
        raise
    except (TimeoutError, MemoryError, RecursionError) as error:
        raise StoppedError(
            f"the chat template of {name} was stopped: {error}; use a model whose template ends, or fix it "
            "(chat_template.jinja, or chat_template in tokenizer_config.json)"
        ) from error
    except Exception as error:  # templates raise anything: jinja2's errors, TypeError, ValueError
        roles = ", ".join(str(message.get("role")) for message in messages)
        reason = " ".join(str(error).split())
        raise UserError(
            f"the chat template of {name} refuses the messages ({roles}): {reason}; fix the row or the template"
        ) from error


def _name(tokenizer: Any) -> str:
    return repr(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)
