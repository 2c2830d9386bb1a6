"""The silent bugs of RLHF code, the invariant that catches each, and mutants that put the bug in on purpose."""

from __future__ import annotations

from mutant_catalogue.answers import ANSWERS
from mutant_catalogue.arithmetic import ARITHMETIC
from mutant_catalogue.changed_files import CHANGED_FILES
from mutant_catalogue.credit import CREDIT
from mutant_catalogue.critic_free import CRITIC_FREE
from mutant_catalogue.devices import ON_DEVICES
from mutant_catalogue.engines import ENGINES
from mutant_catalogue.families import FAMILIES
from mutant_catalogue.feedback import FEEDBACK
from mutant_catalogue.folders import FOLDERS
from mutant_catalogue.limits_and_masks import LIMITS_AND_MASKS
from mutant_catalogue.losses import LOSSES
from mutant_catalogue.precisions import PRECISIONS
from mutant_catalogue.rewards import REWARDS
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
from mutant_catalogue.values import VALUES

SECTIONS: dict[str, tuple[Row, ...]] = {
    "Rollouts": ROLLOUTS,
    "Sampling engines": ENGINES,
    "Scores, advantages and KL": TOKENS,
    "Rewards": REWARDS,
    "Text and tokenizers": TEXT,
    "Losses and accumulation": LOSSES,
    "Groups and critics": CREDIT,
    "Losses without a critic": CRITIC_FREE,
    "Limits and masks": LIMITS_AND_MASKS,
    "Preference losses": ANSWERS,
    "Values and teachers": VALUES,
    "Coefficients, schedules and budgets": ARITHMETIC,
    "State, resuming and processes": STATE,
    "Signals": SIGNALS,
    "Precision": PRECISIONS,
    "Model families": FAMILIES,
    "Model folders": FOLDERS,
    "Clocks, copies and full disks": RUNS,
    "Changed files": CHANGED_FILES,
    "Files from strangers": STRANGERS,
    "Tracking": TRACKING,
    "Runs that end well and are wrong": SILENT,
    "Declarations": SOURCE,
    "Devices": ON_DEVICES,
    "Human feedback": FEEDBACK,
}
ROWS: tuple[Row, ...] = tuple(row for rows in SECTIONS.values() for row in rows)

__all__ = ["ROWS", "SECTIONS", "Mutant", "Row"]
