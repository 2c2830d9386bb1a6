"""What rlhf-agreement writes and prints."""

from __future__ import annotations

import json
import math
import re

import pytest
from rich.console import Console

from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback.agreement_table import terminal_tables, what_alpha_means
from rlhf_lightning.feedback.measuring import flat_agreement, measure_agreement, write_agreement
from rlhf_lightning.feedback.records import Answer
from rlhf_lightning.feedback.tasks import check_task

WICKED = "<b>ana</b>"  # no labeler may have this name; a page shows it literally all the same


@pytest.fixture
def labelled(store, pair):
    store.add_tasks(
        [*(pair(f"p{i}", overlap=3) for i in range(30)), *(check_task(f"c{i}", "yes", "no") for i in range(9))]
    )
    tasks = list(store.tasks())
    for name, kind in (("ana", "person"), ("bo", "person"), ("machine", "model")):
        store.add_labeler(name, kind)
        for i, task in enumerate(tasks):
            right = (i % 2) if task.check is None else task.check
            wrong = name == "machine" and i % 3 == 0
            store.record(name, task.id, Answer("choice", 1 - right if wrong else right))
    return store


def test_the_files_say_what_was_measured(labelled, tmp_path):
    report = measure_agreement(labelled, draws=50)
    files = write_agreement(tmp_path / "out", report, labelled)
    assert [file.name for file in files] == ["agreement.json", "agreement.html"]
    content = json.loads(files[0].read_text())
    assert content["raw"]["value"] == pytest.approx(
        1 / 3 + 2 / 3 * 2 / 3
    )  # ana and bo always agree, each with machine in 26 of 39
    assert content["between_kinds"]["model-person"]["value"] == pytest.approx(26 / 39)
    page = files[1].read_text()
    assert page.count('class="row"><span title="machine"') >= 3
    assert not re.search(r"<(script|link|img)|https?:", page)  # one file, nothing from elsewhere
    flat = flat_agreement(report)
    assert flat["raw"] == content["raw"]["value"] and flat["labelers"] == 3


def test_a_page_escapes_names_and_survives_what_nobody_measured(labelled, tmp_path, monkeypatch):
    from dataclasses import replace

    from rlhf_lightning.feedback.agreement_page import render_agreement

    report = measure_agreement(labelled, labelers=["ana"], draws=5)
    assert math.isnan(report.alpha.value)
    wicked = replace(report, labelers=tuple(replace(each, name=WICKED) for each in report.labelers))
    page = render_agreement(wicked, "title", ["<i>store</i>"])
    assert "&lt;b&gt;ana&lt;/b&gt;" in page and WICKED not in page and "<i>store" not in page
    assert "nan" not in re.sub(r"<style>.*</style>", "", page, flags=re.DOTALL)


def test_the_tables_fit_80_columns(labelled):
    report = measure_agreement(labelled, draws=50)
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for part in terminal_tables(report):
        console.print(part)
    text = console.export_text()
    assert "ana, machine" in text and "model and person" in text and "worth a look: machine: agrees" in text
    assert "100%" in text and "…" not in text
    for heading in ("with others", "checks right", "first position", "others: longer", "time"):
        assert re.search(rf"^{heading}: \w", text, re.MULTILINE), f"{heading}: nothing says how to read it"


@pytest.mark.parametrize(
    ("alpha", "words"), [(0.8, "reliable"), (0.7, "tentative"), (0.5, "not reliable"), (math.nan, "not known")]
)
def test_alpha_is_read_as_its_author_reads_it(alpha, words):
    assert words in what_alpha_means(alpha)


def test_a_store_without_judgements_is_said(store, pair):
    store.add_tasks([pair("p")])
    with pytest.raises(UserError, match="holds no judgements yet"):
        measure_agreement(store)
