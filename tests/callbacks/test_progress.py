from __future__ import annotations

import io
import re
import sys

from rlhf_lightning.callbacks import ProgressBar

PPO = [
    {"objective/scores": 1.234, "objective/kl": 4.5, "kl/coef": 0.12},
    {"objective/scores": 2.0, "objective/kl": 5.0},
]


def test_one_plain_line_an_epoch_when_the_output_is_no_terminal(tiny_module, make_trainer, capsys):
    make_trainer(callbacks=[ProgressBar()], enable_progress_bar=True, max_epochs=2).fit(tiny_module(figures=PPO))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert re.fullmatch(r"epoch 1/2  score 1\.23  kl 4\.5  coef 0\.12  \[\d+ s\]", lines[0])
    assert lines[1].startswith("epoch 2/2  score 2  kl 5 ")
    assert len(lines) == 2


def test_a_long_epoch_reports_in_between(tiny_module, make_trainer, capsys):
    make_trainer(callbacks=[ProgressBar(seconds=1e-9)], enable_progress_bar=True, max_epochs=1).fit(tiny_module())
    assert "epoch 1/1  batch 2/4  loss" in capsys.readouterr().out


def test_a_terminal_gets_a_bar_and_no_lines(tiny_module, make_trainer, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    make_trainer(callbacks=[ProgressBar()], enable_progress_bar=True, max_epochs=2).fit(tiny_module(figures=PPO))
    text = screen.getvalue()
    assert "epoch 1/2" not in text
    assert "score=1.23" in text
    assert "v_num" not in text
