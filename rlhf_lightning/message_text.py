"""A message of a conversation as people and judges read it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def message_text(message: Mapping[str, Any]) -> str:
    """Return the content of a message and, on a line each, the tools that it calls.

    >>> message_text({"content": "Let me see.", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}]})
    'Let me see.\\n[calls add({"a": 1})]'
    """
    content, calls = message.get("content"), message.get("tool_calls")
    said = [str(content)] if content else []
    return "\n".join(said + [_call_text(call) for call in (calls if isinstance(calls, list) else [])])


def _call_text(call: Any) -> str:
    called = call.get("function", call) if isinstance(call, Mapping) else call
    if not isinstance(called, Mapping) or "name" not in called:
        return f"[calls {_as_json(called)}]"
    return f"[calls {called['name']}({_as_json(called.get('arguments', ''))})]"


def _as_json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
