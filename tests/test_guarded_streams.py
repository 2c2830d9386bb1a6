"""Whatever is printed, logged or raised, by any library: nothing acts on the terminal, and no secret is shown."""

from __future__ import annotations

import logging
import sys
import traceback
import warnings

import pytest

from rlhf_lightning.guarded_streams import guarded_streams

ESCAPE, PASSWORD = "\x1b[31m\x9b2J\u202e", "http://ana:hunter2-and-more@host"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_what_is_printed_is_harmless(stream, capsys):
    with guarded_streams():
        print(ESCAPE, PASSWORD, file=getattr(sys, stream))
        getattr(sys, stream).writelines([ESCAPE, PASSWORD])
    text = "".join(capsys.readouterr())
    assert not set("\x1b\x9b\u202e") & set(text)
    assert "hunter2" not in text
    assert "\\x1b[31m" in text


def test_warnings_and_tracebacks_are_harmless(capsys):
    with guarded_streams():
        sys.stderr.write(warnings.formatwarning(f"{ESCAPE} {PASSWORD}", UserWarning, "x.py", 1))
        try:
            raise ValueError(f"{ESCAPE} {PASSWORD}")
        except ValueError:
            traceback.print_exc()
            sys.excepthook(*sys.exc_info())
    text = capsys.readouterr().err
    assert text.count("\\x1b[31m") == 3
    assert "\x1b" not in text
    assert "hunter2" not in text


def test_handlers_made_before_and_files_get_harmless_records(capsys, tmp_path):
    logger = logging.getLogger("a library's")
    handlers = [logging.StreamHandler(sys.stderr), logging.FileHandler(tmp_path / "log.txt")]
    for handler in handlers:
        logger.addHandler(handler)
    try:
        with guarded_streams():
            logger.warning("%s and %s", ESCAPE, PASSWORD)
            logger.warning("no arguments: 100% of %s")
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()
    for text in (capsys.readouterr().err, (tmp_path / "log.txt").read_text()):
        assert "\\x1b[31m" in text
        assert "100% of %s" in text
        assert not set("\x1b\x9b\u202e") & set(text)
        assert "hunter2" not in text


def test_bars_draw_on_a_terminal_and_nowhere_else(capsys, monkeypatch):
    from tqdm import tqdm

    with guarded_streams():
        for _ in tqdm(range(2), file=sys.stdout):
            pass
    assert "\r" not in capsys.readouterr().out
    with guarded_streams():
        monkeypatch.setattr(sys.stdout.guarded, "isatty", lambda: True)
        for _ in tqdm(range(2), file=sys.stdout):
            pass
        print(ESCAPE)
    text = capsys.readouterr().out
    assert "\r" in text
    assert "\x1b[31m" not in text


def test_the_streams_are_as_before_afterwards():
    before = sys.stdout, sys.stderr, logging.getLogRecordFactory()
    with guarded_streams(), guarded_streams():
        assert sys.stdout is not before[0]
        assert sys.stdout.fileno is not None
    assert (sys.stdout, sys.stderr, logging.getLogRecordFactory()) == before
