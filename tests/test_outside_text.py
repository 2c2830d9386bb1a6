"""Nothing from outside may act on a terminal, a page or a card."""

from __future__ import annotations

import pytest

from rlhf_lightning.outside_text import as_code, for_html, for_markdown, for_terminal, on_one_line

HOSTILE = [
    "\x1b[2J\x1b[H",  # clears the screen
    "\x1b]0;title\x07",  # sets the window's title
    "\x9b31m",  # the same, introduced by one byte
    "a\rb",  # writes over the line
    "a\x08\x08",
    "\u202etxt.exe",  # right to left from here on
    "a\u2028b",
    "\x7f",
    "\x85a",
    "\x1bP1;2q\x1b\\",  # a picture
    "a\u061cb",
    "a\u206ab",
    "a\ufff9b\ufffac\ufffb",
    "a\u180eb\u200bc\ufeff",
    "\U000e0001\U000e0068\U000e0069",  # invisible letters
    "\ud83d",  # half a surrogate pair
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_terminal_gets_no_control_character(text):
    for clean in (for_terminal(text), on_one_line(text), for_html(text), for_markdown(text), as_code(text)):
        assert all(character.isprintable() or character in "\n\t" for character in clean), repr(clean)


def test_ordinary_text_stays():
    text = (
        "Ein Satz, 漢字, emoji 🙂 👩\u200d👩\u200d👧 ✈\ufe0f, עברית, فارسی می\u200cخواهم, soft\u00adhyphen\n\tindented"
    )
    assert for_terminal(text) == text
    scotland = "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f"
    assert for_terminal(scotland) == scotland


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("a | b", r"a \| b"),
        ("two\nlines", "two lines"),
        ("<script>alert(1)</script>", r"\<script\>alert(1)\</script\>"),
        ("[x](javascript:alert(1))", r"\[x\](javascript:alert(1))"),
        ("![x](http://a.b/c.png)", r"!\[x\](http\://a.b/c.png)"),
        ("`code`", r"\`code\`"),
        ("see https://evil.example and www.evil.example", r"see https\://evil.example and www\.evil.example"),
        ("ana@evil.example", r"ana\@evil.example"),
        ("_a_ my_run_name ~~b~~ &lt; $x$", r"\_a\_ my_run_name \~\~b\~\~ \&lt; \$x\$"),
    ],
)
def test_markdown_shows_the_text_itself(text, cell):
    assert for_markdown(text) == cell


def test_a_code_span_cannot_be_left():
    assert as_code("a``b`c") == "```a``b`c```"
    assert as_code("`") == "`` ` ``"
