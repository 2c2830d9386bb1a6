"""Text from outside (data, models' answers, names, file contents) on its way to a terminal, Markdown or HTML.

Prompts, responses and names can hold anything. Nothing of it may move a cursor, colour a screen, set a window title,
reverse the reading direction, or become markup.
"""

from __future__ import annotations

import html
import re

# C0 and C1 control characters but for newline and tab, DEL, and what changes the reading direction of the text around.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2028\u2029\u2066-\u2069]")
_MARKDOWN = re.compile(r"([\\`*\[\]<>|])")


def for_terminal(text: str) -> str:
    r"""Return the text with control characters spelled out, so that a terminal shows them and obeys none.

    >>> print(for_terminal("a\x1b[31mb"))
    a\x1b[31mb
    """
    return _UNSAFE.sub(lambda found: _spelled(found[0]), text)


def on_one_line(text: str) -> str:
    r"""Return `for_terminal` of the text with each run of white space as one space.

    >>> on_one_line("two\n  lines")
    'two lines'
    """
    return for_terminal(" ".join(text.split()))


def for_markdown(text: str) -> str:
    r"""Return the text as one line of Markdown that shows it as it is: no link, no HTML, no table cell ends in it.

    >>> print(for_markdown("<img src=x> [a](b) | c"))
    \<img src=x\> \[a\](b) \| c
    """
    return _MARKDOWN.sub(r"\\\1", on_one_line(text))


def as_code(text: str) -> str:
    r"""Return the text as a code span of Markdown, which may stand in a table.

    >>> print(as_code("a`b|c"))
    ``a`b\|c``
    """
    line = on_one_line(text).replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    padding = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{padding}{line}{padding}{fence}"


def for_html(text: str) -> str:
    """Return the text for HTML, in an element or a quoted attribute.

    >>> for_html("<b>")
    '&lt;b&gt;'
    """
    return html.escape(for_terminal(text))


def _spelled(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
