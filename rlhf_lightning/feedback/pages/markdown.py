"""Rendering untrusted Markdown as inert HTML.

HTML becomes text, images become links, links lead only to http(s) and open without an opener or referrer, and control
characters (ANSI) are spelled out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markupsafe import Markup, escape

from rlhf_lightning.outside_text import for_terminal

_LONGEST = 100_000  # characters; longer text is shown without markup


class _Renderer(RendererHTML):
    """Renders external links safely, and code blocks that can be scrolled by keyboard."""

    def link_open(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        tokens[idx].attrSet("rel", "noopener noreferrer nofollow")
        tokens[idx].attrSet("target", "_blank")
        return self.renderToken(tokens, idx, options, env)

    def fence(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return f'<pre tabindex="0"><code>{escape(tokens[idx].content)}</code></pre>\n'

    def code_block(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return self.fence(tokens, idx, options, env)


class _Parser(MarkdownIt):
    """Parses without HTML and images, with tables, and with links only to the web."""

    def __init__(self) -> None:
        super().__init__("commonmark", {"html": False, "breaks": True}, renderer_cls=_Renderer)
        self.enable(["table", "strikethrough"]).disable(["image", "html_inline", "html_block"])

    def validateLink(self, url: str) -> bool:  # noqa: N802
        try:
            parts = urlsplit(url.strip())
        except ValueError:
            return False
        return parts.scheme in ("http", "https") and bool(parts.netloc)


_PARSER = _Parser()


def render_markdown(text: str) -> Markup:
    """Return HTML in which nothing from the text can run, load or hide.

    >>> print(render_markdown("**bold** <b>not</b> [a](javascript:b)"))
    <p><strong>bold</strong> &lt;b&gt;not&lt;/b&gt; [a](javascript:b)</p>
    <BLANKLINE>
    """
    shown = for_terminal(text.replace("\r\n", "\n"))
    if len(shown) > _LONGEST:
        return Markup('<pre tabindex="0">{}</pre>').format(shown)
    return Markup(_PARSER.render(shown))  # the parser escapes it
