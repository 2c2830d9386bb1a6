"""Human feedback: tasks, a store of judgements, agreement, aggregation, export.

The web page is `rlhf_lightning.feedback.pages.make_app`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rlhf_lightning.feedback.aggregation import (
    BradleyTerry,
    DawidSkene,
    Decisions,
    bradley_terry,
    dawid_skene,
    decide,
    reliabilities,
)
from rlhf_lightning.feedback.agreement import AgreementReport, LabelerReport, agreement_report
from rlhf_lightning.feedback.argilla import from_argilla, to_argilla
from rlhf_lightning.feedback.coefficients import (
    Interval,
    alpha_interval,
    cohens_kappa,
    krippendorff_alpha,
)
from rlhf_lightning.feedback.drawing import Drawing
from rlhf_lightning.feedback.export import preference_rows, ranked_rows, unpaired_rows, write_splits
from rlhf_lightning.feedback.exporting import export_project, export_rows, import_labels
from rlhf_lightning.feedback.interchange import Names, import_into
from rlhf_lightning.feedback.judge import (
    PositionBias,
    Verdict,
    judge_by_logprobs,
    judge_by_reasons,
    position_bias,
)
from rlhf_lightning.feedback.label_studio import from_label_studio, to_label_studio
from rlhf_lightning.feedback.measuring import flat_agreement, measure_agreement, write_agreement
from rlhf_lightning.feedback.progress import Progress, progress
from rlhf_lightning.feedback.records import EVERYBODY, Answer, Judgement, Labeler, Response, ShownTask, Task, task_id
from rlhf_lightning.feedback.rounds import collect, export_judgements, label_by_judge, wait_for_people
from rlhf_lightning.feedback.store import FeedbackStore
from rlhf_lightning.feedback.tasks import Asking, Sample, check_task, make_tasks, spread
from rlhf_lightning.judging.comparing import Compared, Comparison, parse_verdict
from rlhf_lightning.judging.constitution import read_constitution
from rlhf_lightning.judging.endpoint import ChatEndpoint
from rlhf_lightning.judging.judge import Judge, make_judge
from rlhf_lightning.judging.usage import Usage

if TYPE_CHECKING:
    from rlhf_lightning.feedback.collecting import Collected, add_tasks, collect_tasks

_SAMPLES = ("Collected", "add_tasks", "collect_tasks")  # these need torch, which the pages do not

__all__ = [
    "EVERYBODY",
    "AgreementReport",
    "Answer",
    "Asking",
    "BradleyTerry",
    "ChatEndpoint",
    "Collected",
    "Compared",
    "Comparison",
    "DawidSkene",
    "Decisions",
    "Drawing",
    "FeedbackStore",
    "Interval",
    "Judge",
    "Judgement",
    "Labeler",
    "LabelerReport",
    "Names",
    "PositionBias",
    "Progress",
    "Response",
    "Sample",
    "ShownTask",
    "Task",
    "Usage",
    "Verdict",
    "add_tasks",
    "agreement_report",
    "alpha_interval",
    "bradley_terry",
    "check_task",
    "cohens_kappa",
    "collect",
    "collect_tasks",
    "dawid_skene",
    "decide",
    "export_judgements",
    "export_project",
    "export_rows",
    "flat_agreement",
    "from_argilla",
    "from_label_studio",
    "import_into",
    "import_labels",
    "judge_by_logprobs",
    "judge_by_reasons",
    "krippendorff_alpha",
    "label_by_judge",
    "make_judge",
    "make_tasks",
    "measure_agreement",
    "parse_verdict",
    "position_bias",
    "preference_rows",
    "progress",
    "ranked_rows",
    "read_constitution",
    "reliabilities",
    "spread",
    "task_id",
    "to_argilla",
    "to_label_studio",
    "unpaired_rows",
    "wait_for_people",
    "write_agreement",
    "write_splits",
]


def __getattr__(name: str) -> Any:
    if name in _SAMPLES:
        return getattr(import_module("rlhf_lightning.feedback.collecting"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
