"""Row formats, chat templates, tokenisation, collation, resumable sampling, and one data module per kind of data."""

from rlhf_lightning.data.batches import (
    MismatchedBatch,
    PreferenceBatch,
    PromptRow,
    SequenceBatch,
    TokenizedAnswer,
    TokenizedPreference,
    TokenizedSequence,
    UnpairedBatch,
)
from rlhf_lightning.data.collation import (
    collate_answers,
    collate_preferences,
    collate_rewarded,
    collate_sequences,
    left_pad,
)
from rlhf_lightning.data.datamodules import PreferenceDataModule, PromptDataModule, SFTDataModule
from rlhf_lightning.data.decoding import response_texts
from rlhf_lightning.data.loader import BatchLoader
from rlhf_lightning.data.reading import read_rows
from rlhf_lightning.data.rewarded import RewardedDataModule
from rlhf_lightning.data.rewarded_batches import RewardedBatch, TokenizedRewarded
from rlhf_lightning.data.rows import row_format
from rlhf_lightning.data.safety import SafetyDataModule
from rlhf_lightning.data.steps import StepBatch, StepDataModule, tokenize_steps
from rlhf_lightning.data.templates import render_completion, render_prompt
from rlhf_lightning.data.tokenization import tokenize_completions, tokenize_prompt
from rlhf_lightning.data.unpaired import UnpairedDataModule

__all__ = [
    "BatchLoader",
    "MismatchedBatch",
    "PreferenceBatch",
    "PreferenceDataModule",
    "PromptDataModule",
    "PromptRow",
    "RewardedBatch",
    "RewardedDataModule",
    "SFTDataModule",
    "SafetyDataModule",
    "SequenceBatch",
    "StepBatch",
    "StepDataModule",
    "TokenizedAnswer",
    "TokenizedPreference",
    "TokenizedRewarded",
    "TokenizedSequence",
    "UnpairedBatch",
    "UnpairedDataModule",
    "collate_answers",
    "collate_preferences",
    "collate_rewarded",
    "collate_sequences",
    "left_pad",
    "read_rows",
    "render_completion",
    "render_prompt",
    "response_texts",
    "row_format",
    "tokenize_completions",
    "tokenize_prompt",
    "tokenize_steps",
]
