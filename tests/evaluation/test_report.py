from __future__ import annotations

import base64
import dataclasses
import html.parser
import io
import re

import matplotlib
import pytest
from PIL import Image
from rich.console import Console

from rlhf_lightning.evaluation import Evaluation, terminal_table, write_report
from rlhf_lightning.evaluation.report import first_of_each_kind, report_panels
from rlhf_lightning.evaluation.table import reading_notes

KINDS = ["question", "unsafe", "request"]


@pytest.fixture
def evaluation() -> Evaluation:
    shift = {"sft": 0.0, "ppo": 1.0, "dpo": 0.5}
    samples = []
    for i in range(12):
        answers = {
            name: {
                "response": f"<b>{name} {i} $x$</b>",
                "length": 5,
                "ended": True,
                "gold": i / 4 + by,
                "proxy": i / 3 + by,
            }
            for name, by in shift.items()
        }
        samples.append({"prompt": f"prompt {i}?", "kind": KINDS[i % 3], "policies": answers})
    metrics = {
        name: {"gold_mean": by, "proxy_mean": by, "kl": 4.2, "unsafe_refusal_rate": 0.9, "over_refusal_rate": 0.1}
        for name, by in shift.items()
    }
    for name in ("ppo", "dpo"):
        stem = "gold_win_rate_vs_sft"
        metrics[name] |= {stem: 0.875, f"{stem}_low": 0.79, f"{stem}_high": 0.93}
    return Evaluation(metrics, samples, "sft")


HISTORIES = {
    "sft": [
        {"step": 1, "epoch": 0, "train/loss": 2.0},
        {"step": 2, "epoch": 0, "train/loss": 1.5, "val/loss": 1.0},
        {"step": 3, "epoch": 0, "val/loss": 0.9},
    ],
    "ppo": [
        {"step": 4 * e, "epoch": e, "objective/scores": 0.1 * e, "objective/kl": 0.5 * e, "kl/coef": 0.1}
        for e in range(9)
    ],
}
SUMMARY = {"reward.accuracy": 0.8, "reward.bayes_accuracy": 0.84, "ppo.kl_target": 6.0}


class Page(html.parser.HTMLParser):
    """Checks that tags nest, and collects text, images and outside addresses."""

    VOID = frozenset({"meta", "img", "br", "hr", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.images: list[bytes] = []
        self.outside: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href"):
                if value.startswith("data:image/png;base64,"):
                    self.images.append(base64.b64decode(value.partition(",")[2]))
                else:
                    self.outside.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_is_valid_self_contained_and_holds_what_it_must(evaluation, tmp_path):
    backend = matplotlib.get_backend()
    paths = write_report(tmp_path / "new", evaluation, HISTORIES, "Demo & more", summary=SUMMARY)
    assert [path.name for path in paths] == ["report.html", "report.png"]
    source = paths[0].read_text(encoding="utf-8")
    assert source.startswith("<!DOCTYPE html>")
    page = Page(source)
    assert page.outside == []
    assert "url(" not in source
    assert len(page.images) == len(report_panels(evaluation, HISTORIES, SUMMARY)) == 9
    for image in page.images:
        Image.open(io.BytesIO(image)).verify()
    assert "Demo & more" in page.text
    assert re.search(r"wins by gold, %\s*–\s*88 79–93\s*88 79–93", page.text)
    assert "12 held-out prompts" in page.text
    assert "answers that score above sft's to the same prompt, ties count half" in page.text
    assert "<b>ppo 0 $x$</b>" in page.text  # responses are shown literally, never read as markup
    assert "<b>" not in source
    assert Image.open(paths[1]).width > 1500
    assert matplotlib.get_backend() == backend


@pytest.mark.parametrize("missing", ["histories", "gold", "samples", "kinds"])
def test_what_is_not_known_is_left_out(evaluation, tmp_path, missing):
    histories = {} if missing == "histories" else HISTORIES
    if missing == "gold":
        for row in evaluation.metrics.values():
            for key in [key for key in row if key.startswith("gold")]:
                del row[key]
        for row in evaluation.samples:
            for answer in row["policies"].values():
                del answer["gold"]
    if missing == "samples":
        evaluation.samples.clear()
    if missing == "kinds":
        for metrics in evaluation.metrics.values():
            del metrics["unsafe_refusal_rate"], metrics["over_refusal_rate"]
        for row in evaluation.samples:
            row["kind"] = None
    paths = write_report(tmp_path, evaluation, histories, "Part")
    Page(paths[0].read_text(encoding="utf-8"))
    assert paths[1].stat().st_size > 10_000


def test_an_evaluation_of_one_policy_alone_is_a_report(tmp_path):
    paths = write_report(tmp_path, Evaluation({"sft": {"length": 3.0}}), {}, "Alone")
    assert "length, tokens" in Page(paths[0].read_text(encoding="utf-8")).text


def test_the_curves_of_several_policies_name_the_stage_of_each(evaluation):
    histories = dict.fromkeys(("ppo_1", "ppo_2", "grpo"), HISTORIES["ppo"])
    titles = []
    for panel in report_panels(evaluation, histories, {})[:9]:
        ax = matplotlib.figure.Figure().subplots()
        panel.draw(ax)
        titles.append(ax.get_title(loc=matplotlib.rcParams["axes.titlelocation"]))
    shown = ("reward", "distance from the reference", "KL coefficient")
    assert titles == [f"{name}: {what}" for name in ("ppo_1", "ppo_2", "GRPO") for what in shown]


def test_the_samples_are_a_fixed_choice_over_the_kinds(evaluation):
    chosen = first_of_each_kind(evaluation.samples, 4)
    assert [row["prompt"] for row in chosen] == ["prompt 0?", "prompt 1?", "prompt 2?", "prompt 3?"]
    unsafe_first = sorted(evaluation.samples, key=lambda row: row["kind"] != "unsafe")
    assert [row["kind"] for row in first_of_each_kind(unsafe_first, 3)] == ["unsafe", "question", "request"]


def test_a_prompt_sampled_several_times_is_shown_once(evaluation):
    again = [row for row in evaluation.samples for _ in range(4)]
    assert first_of_each_kind(again, 8) == first_of_each_kind(evaluation.samples, 8)


def test_a_loss_that_was_measured_once_has_no_panel(evaluation):
    once = [{"step": 9, "epoch": 0, "val/loss": 1.0}]
    twice = [*once, {"step": 18, "epoch": 1, "val/loss": 0.5}]
    alone, once_more, twice_more = (len(report_panels(evaluation, {"sft": h}, {})) for h in ([], once, twice))
    assert (once_more - alone, twice_more - alone) == (0, 1)


def test_the_terminal_table_fits_and_says_the_figures(evaluation):
    stream = io.StringIO()
    Console(file=stream, width=80).print(terminal_table(evaluation))
    text = stream.getvalue()
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert re.search(r"wins by gold, %\s+–\s+88 79–93\s+88 79–93", text)
    assert re.search(r"KL to the reference, nats per response\s+4\.20\s+4\.20\s+4\.20", text)
    assert "\x1b" not in text  # no colours without a terminal
    after = " ".join(text.rpartition("refused, %")[2].split())
    assert "wins: answers that score above sft's to the same prompt, ties count half; ranges are 95% intervals" in after
    assert "gold: the score that counts as true proxy: the score that training raises" in after


def test_what_a_table_does_not_have_is_not_explained():
    assert reading_notes(Evaluation({"sft": {"length": 3.0}, "ppo": {"length": 4.0}})) == []


def test_the_terminal_table_of_many_policies_goes_on_below_rather_than_break_its_figures(evaluation):
    """Ten policies, some with long names, on terminals as narrow as 60 columns."""
    rows = list(evaluation.metrics.values())
    names = ["sft", *(f"policy_{i}" for i in range(8)), "grpo_from_the_second_round"]
    metrics = {name: {**rows[min(i, 1)], "length": 10.0 + i} for i, name in enumerate(names)}
    table = terminal_table(dataclasses.replace(evaluation, metrics=metrics))
    for width in (60, 80, 200):
        stream = io.StringIO()
        Console(file=stream, width=width).print(table)
        lines = [line.rstrip() for line in stream.getvalue().splitlines()]
        assert max(map(len, lines)) <= width and "…" not in stream.getvalue()
        lengths = [value for line in lines if "length, tokens" in line for value in line.split()[2:]]
        assert lengths == [f"{10 + i}.0" for i in range(10)]
        wins = [line for line in lines if "wins by gold, %" in line]
        assert sum(line.count("88 79–93") for line in wins) == 9
        assert (len(wins) == 1) == (width == 200)
        assert sorted(word for line in lines for word in line.split() if word in names) == sorted(names)


def test_names_and_texts_cannot_steer_the_terminal_or_hide_in_the_page(evaluation, tmp_path):
    stream = io.StringIO()
    nasty = "[red]p[/red]\x1b[31m"
    metrics = {nasty if i == 1 else name: each for i, (name, each) in enumerate(evaluation.metrics.items())}
    Console(file=stream, width=200).print(terminal_table(dataclasses.replace(evaluation, metrics=metrics)))
    assert r"[red]p[/red]\x1b[31m" in stream.getvalue()
    for row in evaluation.samples:
        row["prompt"] += "\x1b[31m"
        for answer in row["policies"].values():
            answer["response"] += "\x1b[31m\u202e"
    write_report(tmp_path, evaluation, {}, "title \x9b")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not set("\x1b\x9b\u202e") & set(page)


def test_any_name_and_script_can_be_drawn_without_a_word(evaluation, tmp_path, recwarn):
    metrics = {r"$\frac{$_^" if name == "dpo" else name: each for name, each in evaluation.metrics.items()}
    for row in evaluation.samples:
        row["prompt"] = f"{row['prompt']} $^ \x1b[31m\x07 漢字"
        row["policies"][r"$\frac{$_^"] = row["policies"].pop("dpo")
    write_report(tmp_path, dataclasses.replace(evaluation, metrics=metrics), {}, "title")
    assert [str(each.message) for each in recwarn if "Glyph" in str(each.message)] == []
