from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from rlhf_lightning.callbacks import MetricsFile
from rlhf_lightning.callbacks.lines import keep_lines
from rlhf_lightning.errors import UserError


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


FIGURES = [{"objective/kl": float(epoch)} for epoch in range(3)]


def test_every_step_and_every_epoch_end_is_one_line(tiny_module, make_trainer, tmp_path):
    make_trainer(callbacks=[MetricsFile()]).fit(tiny_module(figures=FIGURES))
    rows = read(tmp_path)
    assert [row["step"] for row in rows if "train/loss" in row] == list(range(1, 13))
    ends = [row for row in rows if "objective/kl" in row]
    assert [(row["step"], row["epoch"], row["objective/kl"]) for row in ends] == [
        (4, 0, 0.0),
        (8, 1, 1.0),
        (12, 2, 2.0),
    ]


def test_a_new_run_starts_the_file_anew(tiny_module, make_trainer, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 99}\n')
    make_trainer(callbacks=[MetricsFile()], max_epochs=1).fit(tiny_module())
    assert max(row["step"] for row in read(tmp_path)) == 4


@pytest.mark.parametrize("when", [{"every_n_train_steps": 6}, {"every_n_epochs": 1}])
def test_a_resumed_run_writes_what_an_uninterrupted_one_writes(tiny_module, make_trainer, tmp_path, when):
    def checkpoint():
        return ModelCheckpoint(tmp_path / "ck", save_top_k=-1, filename="{step}", auto_insert_metric_name=False, **when)

    whole = make_trainer(callbacks=[MetricsFile(), checkpoint()], enable_checkpointing=True)
    whole.fit(tiny_module(figures=FIGURES))
    expected = read(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "tra')  # a kill in the middle of a line
    first = sorted((tmp_path / "ck").glob("*.ckpt"), key=lambda p: int(p.stem))[0]
    resumed = make_trainer(callbacks=[MetricsFile(), checkpoint()], enable_checkpointing=True)
    resumed.fit(tiny_module(figures=FIGURES), ckpt_path=first)
    if "every_n_epochs" in when:
        assert read(tmp_path) == expected
    else:  # this module's plain loader restarts its epoch: only the steps before it are comparable
        rows = read(tmp_path)
        assert [r["step"] for r in rows if "train/loss" in r][:7] == list(range(1, 8))
        assert len({r["step"] for r in rows if "train/loss" in r}) == len([r for r in rows if "train/loss" in r])


def test_lines_that_have_changed_since_the_checkpoint_are_refused(tiny_module, make_trainer, tmp_path):
    def module():
        made = tiny_module(figures=FIGURES)
        made.pending_metrics = dict
        return made

    checkpoint = ModelCheckpoint(tmp_path / "ck", save_top_k=-1, filename="{step}", auto_insert_metric_name=False)
    make_trainer(callbacks=[MetricsFile(), checkpoint], enable_checkpointing=True).fit(module())
    file, path = tmp_path / "metrics.jsonl", tmp_path / "ck/8.ckpt"
    whole = file.read_bytes()
    lines = torch.load(path)["metrics_file"]["lines"]
    assert 4 < lines < len(whole.splitlines())
    rest = b"".join(whole.splitlines(keepends=True)[lines:])
    damaged = [whole.replace(b'"step": 1', b'"step": 3', 1), whole[1:], b"\xff" + whole[1:], bytes(len(whole)), b""]
    damaged += [whole.removesuffix(rest)[:-1], whole.replace(b"train/loss", b"train/lost", 1)]
    for other in damaged:
        file.write_bytes(other)
        with pytest.raises(UserError, match=rf"metrics\.jsonl: its first {lines} lines are not those"):
            make_trainer(callbacks=[MetricsFile()]).fit(module(), ckpt_path=path)
        assert file.read_bytes() == other
    for after in (b"", b"\xff\xfe\n", b'{"step": 13, "tra'):  # lines that are written again
        file.write_bytes(whole.removesuffix(rest) + after)
        make_trainer(callbacks=[MetricsFile()]).fit(module(), ckpt_path=path)
        assert file.read_bytes().startswith(whole.removesuffix(rest))
        assert [row["step"] for row in read(tmp_path)][lines:] == [9, 10, 11, 12, 12]
    file.unlink()  # another run folder
    make_trainer(callbacks=[MetricsFile()]).fit(module(), ckpt_path=path)


def test_values_that_json_cannot_hold_become_null(tiny_module, make_trainer, tmp_path):
    make_trainer(callbacks=[MetricsFile()], max_epochs=1).fit(tiny_module(scales={1: float("inf")}))
    assert next(row for row in read(tmp_path) if row["step"] == 2)["train/loss"] is None


def test_keep_lines_leaves_no_second_file(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\nhalf')
    keep_lines(path, lambda row: row["step"] < 2)
    assert path.read_text() == '{"step": 1}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["x.jsonl"]
