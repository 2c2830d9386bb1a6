"""Text from outside (data, models' answers, names, file contents) on its way to a terminal, Markdown or HTML.

Prompts, responses and names can contain anything. None of it may move a cursor, colour a screen, set a window title,
reverse the reading direction, or become markup.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

# Control characters except newline and tab; characters that reverse the reading direction, end lines or paragraphs,
# annotate or are invisible; lone surrogates, which no file accepts. Joiners of letters and emoji stay, and so do the
# invisible letters of a flag such as Scotland's.
_UNSAFE = re.compile(
    "(\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{1,6}\U000e007f)|"
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff0-\ufffb"
    "\ud800-\udfff\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e00ff]"
)
_MARKDOWN = re.compile(r"([\\`*\[\]<>|~$&]|(?<!\w)_|_(?!\w)|(?<=\w)(?:(?=://)|(?=@\w))|(?<=www)(?=\.))", re.IGNORECASE)


def for_terminal(text: str) -> str:
    r"""Return the text with control characters spelled out, so that a terminal shows them instead of obeying them.

    >>> print(for_terminal("a\x1b[31mb"))
    a\x1b[31mb
    """
    return _UNSAFE.sub(lambda found: found[1] or _spelled(found[0]), text)


def on_one_line(text: str) -> str:
    r"""Return `for_terminal` of the text with each run of white space replaced by one space.

    >>> on_one_line("two\n  lines")
    'two lines'
    """
    return for_terminal(" ".join(text.split()))


def for_markdown(text: str) -> str:
    r"""Return the text as one line of Markdown that shows it unchanged: no links, HTML or table cell separators.

    >>> print(for_markdown("<img src=x> [a](b) | c"))
    \<img src=x\> \[a\](b) \| c
    """
    return _MARKDOWN.sub(r"\\\1", on_one_line(text))


def as_code(text: str) -> str:
    r"""Return the text as a Markdown code span, also for use in a table.

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
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def html_page(title: str, style: str, parts: Iterable[str]) -> str:
    """Return a whole document around parts that are HTML already; empty parts are omitted, and the title is escaped."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{for_html(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main>\n</body>\n</html>\n"
    )
