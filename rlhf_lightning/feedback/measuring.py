"""The agreement of a store's labelers, written as files: agreement.json and a page."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from rlhf_lightning.durable import write_text_durably
from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback.agreement import AgreementReport, agreement_report
from rlhf_lightning.feedback.agreement_page import render_agreement
from rlhf_lightning.feedback.exporting import judgements_of
from rlhf_lightning.feedback.store import FeedbackStore


def measure_agreement(
    store: FeedbackStore, labelers: Collection[str] | None = None, draws: int = 1000, seed: int = 0
) -> AgreementReport:
    """Return the agreement of a store's labelers.

    Args:
        store: has the tasks and judgements.
        labelers: whose judgements count; None: everybody's.
        draws: number of bootstrap draws over comparisons.
        seed: seed of the bootstrap.

    Raises:
        UserError: nobody has judged anything yet.
    """
    kinds = {labeler.name: labeler.kind for labeler in store.labelers()}
    report = agreement_report(store.tasks(), judgements_of(store, labelers), kinds, draws, seed)
    if not report.labelers:
        raise UserError(
            f"feedback.store: {store.name} holds no judgements{' of these labelers' if labelers else ''} yet; "
            "rlhf-label lets people label, rlhf-judge a model"
        )
    return report


def write_agreement(folder: str | Path, report: AgreementReport, store: FeedbackStore) -> list[Path]:
    """Write agreement.json and agreement.html, and return their paths."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    answers = sum(each.answers for each in report.labelers)
    facts = [
        store.name,
        f"{len(report.labelers)} labelers, {answers} answers, {report.alpha.count} comparisons by two or more",
    ]
    files = [place / "agreement.json", place / "agreement.html"]
    write_text_durably(files[0], json.dumps({"store": store.name, **report.as_dict()}, indent=2) + "\n")
    write_text_durably(files[1], render_agreement(report, "How far labelers agree", facts))
    return files


def flat_agreement(report: AgreementReport) -> dict[str, float | None]:
    """Return the main metrics as one flat object, for summary.json; null for a missing value."""
    found = {"raw": report.raw, "alpha": report.alpha}
    found |= {f"agreement.{kinds}": interval for kinds, interval in report.between_kinds.items()}
    flat: dict[str, float | None] = {}
    for name, interval in found.items():
        values = interval.as_dict()
        flat |= {name: values["value"], f"{name}_low": values["low"], f"{name}_high": values["high"]}
    return {**flat, "labelers": len(report.labelers), "worth_a_look": sum(bool(each.look) for each in report.labelers)}
