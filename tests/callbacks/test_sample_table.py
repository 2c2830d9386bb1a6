from __future__ import annotations

import contextlib
import json

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import MLFlowLogger

from rlhf_lightning.callbacks import SampleTable, sample_table
from rlhf_lightning.callbacks.lines import keep_lines
from rlhf_lightning.callbacks.sample_table import put_table
from rlhf_lightning.errors import UserError


def read(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]


def test_rows_of_every_nth_and_of_the_last_epoch(tiny_module, make_trainer, tmp_path):
    make_trainer(callbacks=[SampleTable(every_n_epochs=3, rows=2)], max_epochs=5).fit(tiny_module())
    rows = read(tmp_path)
    assert [row["epoch"] for row in rows] == [0, 0, 3, 3, 4, 4]
    assert rows[1] == {"epoch": 0, "prompt": "p1", "response": "é0", "score": 1.0, "kl": 0.5}


def test_a_resumed_run_repeats_no_epoch(tiny_module, make_trainer, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path / "ck", save_top_k=-1, filename="{epoch}", auto_insert_metric_name=False)
    make_trainer(callbacks=[SampleTable(rows=1), checkpoint], enable_checkpointing=True).fit(tiny_module())
    make_trainer(callbacks=[SampleTable(rows=1)]).fit(tiny_module(), ckpt_path=tmp_path / "ck" / "0.ckpt")
    assert [row["epoch"] for row in read(tmp_path)] == [0, 1, 2]


def test_rows_that_have_changed_since_the_checkpoint_are_refused(tiny_module, make_trainer, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path / "ck", save_top_k=-1, filename="{epoch}", auto_insert_metric_name=False)
    make_trainer(callbacks=[SampleTable(rows=1), checkpoint], enable_checkpointing=True).fit(tiny_module())
    file, path = tmp_path / "samples.jsonl", tmp_path / "ck" / "1.ckpt"
    whole = file.read_bytes()
    first, second, _ = whole.splitlines(keepends=True)
    for other in (whole.replace(b"p0", b"q0", 1), first, second + first, b""):
        file.write_bytes(other)
        with pytest.raises(UserError, match=r"samples\.jsonl: its first 2 lines are not those"):
            make_trainer(callbacks=[SampleTable(rows=1)]).fit(tiny_module(), ckpt_path=path)
    file.write_bytes(first + second)
    make_trainer(callbacks=[SampleTable(rows=1)]).fit(tiny_module(), ckpt_path=path)
    assert file.read_bytes() == whole


def test_a_module_without_samples_is_left_alone(tiny_module, make_trainer, tmp_path):
    module = tiny_module()
    module.training_step = lambda batch, batch_idx: module.linear(batch[0]).square().mean()
    make_trainer(callbacks=[SampleTable()], max_epochs=1).fit(module)
    assert not (tmp_path / "samples.jsonl").exists()


def test_mlflow_holds_one_growing_table(tiny_module, make_trainer, tmp_path):
    logger = MLFlowLogger("x", tracking_uri=f"sqlite:///{tmp_path}/m.db", artifact_location=(tmp_path / "a").as_uri())
    make_trainer(callbacks=[SampleTable(rows=2)], max_epochs=2, logger=logger).fit(tiny_module())
    (table,) = (tmp_path / "a").rglob("samples.json")
    content = json.loads(table.read_text())
    assert content["columns"] == ["epoch", "prompt", "response", "score", "kl", "split"]
    assert [(row[0], row[-1]) for row in content["data"]] == [(0, "train"), (0, "train"), (1, "train"), (1, "train")]


@pytest.mark.parametrize("down", [set(), {"samples.json"}, {"samples_2.json"}])
def test_a_table_that_has_grown_long_is_followed_by_another(down, tmp_path, monkeypatch):
    monkeypatch.setattr(sample_table, "ROWS_PER_TABLE", 3)
    tables, sent, complete = {}, [], 0

    class Client:
        def log_dict(self, run_id, table, name):
            if name in down:
                raise ConnectionError
            tables[name] = [row[0] for row in table["data"]]
            sent.append(name)

        def set_tag(self, run_id, key, value):
            tables["listed"] = [entry["path"] for entry in json.loads(value)]

    for epoch in range(8):
        with (tmp_path / "samples.jsonl").open("a") as file:
            file.write(json.dumps({"epoch": epoch, "prompt": "p"}) + "\n")
        with contextlib.suppress(ConnectionError):
            complete = put_table(Client(), "run", tmp_path / "samples.jsonl", complete)
        if epoch == 6:
            down.clear()
    assert complete == 2
    assert tables.pop("listed") == ["samples.json", "samples_2.json", "samples_3.json"]
    assert tables == {"samples.json": [0, 1, 2], "samples_2.json": [3, 4, 5], "samples_3.json": [6, 7]}
    assert sent.count("samples.json") <= 4


def test_separators_of_lines_inside_a_sample_do_not_cut_its_row(tmp_path):
    path = tmp_path / "samples.jsonl"
    row = json.dumps({"epoch": 0, "response": "a\u2028b\u0085c"}, ensure_ascii=False) + "\n"
    path.write_text(row + '{"epoch": 1', encoding="utf-8")
    assert keep_lines(path, lambda row: True) == 1
    assert path.read_text(encoding="utf-8") == row
