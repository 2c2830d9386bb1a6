"""Conversation messages, converted from rows into what chat templates read; what they cannot express is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from rlhf_lightning.errors import UserError

Message: TypeAlias = dict[str, Any]
Text: TypeAlias = "str | list[Message]"
Options: TypeAlias = Mapping[str, Any]  # what the chat template receives besides the messages

NAMES_ONLY = ("tool_call_id", "id")  # they identify a message, and are not part of its content
THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # templates that read them may omit those of old turns
TURNS = ("assistant", "tool")  # templates may rewrite these: omit old thoughts, wrap results in JSON
# Columns that other formats put next to the prompt, and that would change what it asks.
ELSEWHERE = (
    "system", "system_prompt", "history", "documents", "functions",
    "image", "images", "video", "videos", "audio", "audios",
)  # fmt: skip
_OWN_ARGUMENTS = (  # of `apply_chat_template`, not of a template
    "conversation", "chat_template", "tools", "documents", "add_generation_prompt", "continue_final_message",
    "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask",
    "tokenizer_kwargs", "messages",
)  # fmt: skip


class Arguments(dict[str, Any]):
    """The arguments of a tool call that were written as JSON text, with that text."""

    def __init__(self, text: str) -> None:
        super().__init__(json.loads(text or "{}"))
        self.text = text


def checked_text(name: str, value: Any) -> Text:
    """Return a string, or messages with `role` and `content`, without the fields that are None.

    Content in several text parts is joined, and a tool call's arguments given as JSON text are parsed.

    Raises:
        UserError: anything else.
    """
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"{name}: character {error.start} is half of a surrogate pair, which is not valid text"
            ) from error
        return value
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise UserError(f"{name}: expected a string, or a list of messages with `role` and `content` strings")
    if not value:
        raise UserError(f"{name}: the list is empty; expected a string, or a list of at least one message")
    return [_checked_message(name, message) for message in value]


def _checked_message(name: str, message: Message) -> Message:
    message = {field: value for field, value in message.items() if value is not None}
    content = message.get("content")
    if isinstance(content, list):
        content = message["content"] = _joined(name, content)
    calls = isinstance(message.get("tool_calls"), list) and message["tool_calls"]
    for field, value in (("role", message.get("role")), ("content", "" if calls and content is None else content)):
        if not isinstance(value, str):
            found = f"the {field} of a message is {'null' if value is None else type(value).__name__}"
            raise UserError(
                f"{name}: {found}; expected a string, or a list of messages with `role` and `content` strings"
            )
    checked_text(name, content or "")
    if calls:
        message["tool_calls"] = [_parsed_call(name, call) for call in message["tool_calls"]]
    return message


def _joined(name: str, parts: list[Any]) -> str:
    for part in parts:
        kind = part.get("type", "text") if isinstance(part, dict) else type(part).__name__
        if not isinstance(part, dict) or kind != "text" or not isinstance(part.get("text"), str):
            raise UserError(f"{name}: a part of a message's content is of type {kind}; only text is read")
    return "".join(part["text"] for part in parts)


def _parsed_call(name: str, call: Any) -> Any:
    """Return the call with its arguments as an object: a template would quote text a second time."""
    if not isinstance(call, dict):
        raise UserError(f"{name}: tool_calls holds {type(call).__name__}; expected a list of objects")
    if isinstance(call.get("function"), dict):
        return {**call, "function": _parsed_call(name, call["function"])}
    if isinstance(call.get("arguments"), str):
        try:
            arguments = Arguments(call["arguments"])
        except (ValueError, TypeError) as error:
            raise UserError(f"{name}: the arguments of a tool call are not a JSON object ({error})") from error
        return {**call, "arguments": arguments}
    return call


def template_options(row: Mapping[str, Any], templated: bool) -> Options:
    """Return what a row gives the chat template besides its messages: TRL's columns `tools` and `chat_template_kwargs`.

    Raises:
        UserError: they are malformed, or the row is plain text, which no template renders; a column that would belong
            in the prompt.
    """
    for name in ELSEWHERE:
        if row.get(name):
            raise UserError(
                f"column {name}: it would change what the prompt asks, and is not rendered; put it into the prompt's "
                "messages, or rename the column if it is not part of the prompt"
            )
    tools, others = row.get("tools"), row.get("chat_template_kwargs")
    tools, others = _from_json("tools", tools), _from_json("chat_template_kwargs", others)
    if tools and not isinstance(tools, list):
        raise UserError(f"tools: expected a list of JSON schemas, found {type(tools).__name__}")
    if others and not isinstance(others, dict):
        raise UserError(f"chat_template_kwargs: expected an object, found {type(others).__name__}")
    for name in others or {}:
        if name in _OWN_ARGUMENTS:
            raise UserError(f"chat_template_kwargs: {name} is not a setting of a template; remove it")
    options = {**({"tools": [_from_json("tools", tool) for tool in tools]} if tools else {}), **(others or {})}
    if options and not templated:
        raise UserError(
            f"{' and '.join(name for name in ('tools', 'chat_template_kwargs') if row.get(name))}: only a chat "
            "template renders them, and the prompt is plain text; give it as messages"
        )
    return options


def _from_json(name: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except json.JSONDecodeError as error:
        raise UserError(f"{name}: not JSON ({error.msg} at column {error.colno}): {value[:60]!r}") from error


def keep_known(options: Options, template: str) -> Options:
    """Return the options without settings that a template does not have; tools stay."""
    return {name: value for name, value in options.items() if name == "tools" or _reads(template, name)}


def spellings(messages: list[Message]) -> list[list[Message]]:
    """Return the messages unchanged, and with their tool calls written in the other possible ways.

    Templates differ on whether absent and empty content mean the same, and may drop the calls for one of them; most
    want arguments as an object, some as JSON text.
    """
    ways = [
        [_respelled(message, content, as_text) if message.get("tool_calls") else message for message in messages]
        for as_text in (False, True)
        for content in (None, "absent", "empty")
    ]
    return [way for i, way in enumerate(ways) if way not in ways[:i]]


def _respelled(message: Message, content: str | None, as_text: bool) -> Message:
    if content is not None and not message.get("content"):
        message = {field: value for field, value in message.items() if field != "content"}
        message |= {"content": ""} if content == "empty" else {}
    return (
        {**message, "tool_calls": [_arguments_as_text(call) for call in message["tool_calls"]]} if as_text else message
    )


def _arguments_as_text(call: dict[str, Any]) -> dict[str, Any]:
    if isinstance(call.get("function"), dict):
        return {**call, "function": _arguments_as_text(call["function"])}
    arguments = call.get("arguments")
    if not isinstance(arguments, dict):
        return call
    written = arguments.text if isinstance(arguments, Arguments) else json.dumps(arguments, ensure_ascii=False)
    return {**call, "arguments": written}


def check_read(
    messages: list[Message], options: Options, template: str, name: str, render: Callable[[list[Message]], str]
) -> None:
    """Raise UserError for content that a template does not read, and so would silently drop.

    Args:
        messages: as given to the template.
        options: what else the template is given.
        template: its source.
        name: whose template it is, for the message.
        render: renders messages with it.
    """
    for field in sorted({field for message in messages for field in _further_fields(message)}):
        without = [{key: value for key, value in message.items() if key != field} for message in messages]
        seen = _reads(template, field) and (field in THOUGHTS or render(without) != render(messages))
        if not seen:
            raise UserError(
                f"a message has the field {field!r}, which the chat template of {name} does not read; remove the "
                "field, or use a template that renders it"
            )
    for option in options:
        if not _reads(template, option):
            key = "tools" if option == "tools" else f"chat_template_kwargs: {option}"
            raise UserError(f"{key}: the chat template of {name} does not read it; remove it, or use another template")


def _further_fields(message: Message) -> set[str]:
    names = {*NAMES_ONLY, "name"} if message["role"] == "tool" else {*NAMES_ONLY}
    return {field for field, value in message.items() if value not in ("", [], {})} - {"role", "content"} - names


def _reads(template: str, name: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b", template) is not None


def check_rendered(messages: list[Message], options: Options, rendered: str, name: str) -> None:
    """Raise UserError for a message or a tool that does not appear in the template's output."""
    for message in messages:
        if message["role"] not in TURNS and (message.get("content") or "").strip() not in rendered:
            raise UserError(
                f"the chat template of {name} leaves out messages of the role {message['role']!r}; "
                "use roles that it knows (such as user and assistant)"
            )
    for tool in options.get("tools") or ():
        if (offered := _name_of(tool)) is not None and offered not in rendered:
            raise UserError(f"tools: the chat template of {name} leaves out the tool {offered!r}")


def _name_of(tool: Any) -> str | None:
    if not isinstance(tool, dict):
        return getattr(tool, "__name__", None)
    function = tool.get("function")
    found = (function if isinstance(function, dict) else tool).get("name")
    return found if isinstance(found, str) else None
