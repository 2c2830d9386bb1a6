"""The silent bugs of RLHF code, the invariant that catches each, and mutants that put the bug in on purpose."""

from __future__ import annotations

from mutant_catalogue.answers import ANSWERS
from mutant_catalogue.arithmetic import ARITHMETIC
from mutant_catalogue.changed_files import CHANGED_FILES
from mutant_catalogue.credit import CREDIT
from mutant_catalogue.devices import ON_DEVICES
from mutant_catalogue.engines import ENGINES
from mutant_catalogue.families import FAMILIES
from mutant_catalogue.feedback import FEEDBACK
from mutant_catalogue.folders import FOLDERS
from mutant_catalogue.losses import LOSSES
from mutant_catalogue.precisions import PRECISIONS
from mutant_catalogue.rollouts import ROLLOUTS
from mutant_catalogue.rows import Mutant, Row
from mutant_catalogue.runs import RUNS
from mutant_catalogue.signals import SIGNALS
from mutant_catalogue.silent import SILENT
from mutant_catalogue.source import SOURCE
from mutant_catalogue.state import STATE
from mutant_catalogue.strangers import STRANGERS
from mutant_catalogue.text import TEXT
from mutant_catalogue.tokens import TOKENS
from mutant_catalogue.tracking import TRACKING

ROWS: tuple[Row, ...] = (
    *ROLLOUTS,
    *ENGINES,
    *TOKENS,
    *TEXT,
    *LOSSES,
    *CREDIT,
    *ANSWERS,
    *ARITHMETIC,
    *STATE,
    *SIGNALS,
    *PRECISIONS,
    *FAMILIES,
    *FOLDERS,
    *RUNS,
    *CHANGED_FILES,
    *STRANGERS,
    *TRACKING,
    *SILENT,
    *SOURCE,
    *ON_DEVICES,
    *FEEDBACK,
)

__all__ = ["ROWS", "Mutant", "Row"]
