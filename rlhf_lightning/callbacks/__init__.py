"""The Lightning callbacks of a run: its files, its progress display, and what stops it in time."""

from rlhf_lightning.callbacks.checkpoint_io import DurableCheckpointIO
from rlhf_lightning.callbacks.guardrails import Guardrails
from rlhf_lightning.callbacks.instruments import Instruments
from rlhf_lightning.callbacks.metrics_file import MetricsFile
from rlhf_lightning.callbacks.mlflow_logger import SteadyMLFlowLogger
from rlhf_lightning.callbacks.overoptimization import OverOptimization
from rlhf_lightning.callbacks.progress import ProgressBar
from rlhf_lightning.callbacks.resumable_checkpoint import ResumableCheckpoint
from rlhf_lightning.callbacks.resume import ReproducibleResume
from rlhf_lightning.callbacks.sample_table import SampleTable
from rlhf_lightning.callbacks.sigterm import StopOnSigterm
from rlhf_lightning.callbacks.trainable_average import TrainableAverage

__all__ = [
    "DurableCheckpointIO",
    "Guardrails",
    "Instruments",
    "MetricsFile",
    "OverOptimization",
    "ProgressBar",
    "ReproducibleResume",
    "ResumableCheckpoint",
    "SampleTable",
    "SteadyMLFlowLogger",
    "StopOnSigterm",
    "TrainableAverage",
]
