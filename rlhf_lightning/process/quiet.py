"""Silencing library output that a user cannot act on. Errors and the project's own warnings stay."""

from __future__ import annotations

import logging
import os
import warnings

# Read by the libraries when they are imported, so set before that; the user's own settings win.
_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",  # otherwise tokenizers warns at every fork
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "BITSANDBYTES_NOWELCOME": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # an unavailable store is one line, not tracebacks
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the tracker retries itself, and creates no second run
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",  # mlflow looks for git
}
_WARNINGS = (
    ".*does not have many workers.*",
    ".*num_workers.*",
    ".*The number of training batches .* is smaller than the logging interval.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*pkg_resources is deprecated.*",
    ".*LeafSpec.*",
    ".*os.fork\\(\\).*",
    ".*Total length of `list` across ranks is zero.*",  # no validation data
    ".*module\\(s\\) in eval mode at the start of training.*",  # the frozen reference
    ".*GPU available but not used.*",
    ".*`training_step` returned `None`.*",
    ".*Trying to infer the `batch_size`.*",
    ".*It is recommended to use `self.log\\(.*sync_dist=True\\)`.*",  # the values already cover all processes
    ".*You passed in a `val_dataloader` but have no `validation_step`.*",  # PPO
)
_LOGGERS = {
    "alembic": logging.WARNING,  # one line per migration
    "mlflow": logging.CRITICAL,
    "lightning.pytorch.loggers.mlflow": logging.ERROR,  # a new experiment does not need a warning
    "lightning.pytorch.utilities.rank_zero": logging.WARNING,  # the available devices, and tips
    "lightning.fabric.utilities.distributed": logging.WARNING,
    "lightning.fabric.utilities.seed": logging.WARNING,
    "lightning.pytorch.accelerators.cuda": logging.WARNING,
    "lightning.pytorch.trainer.connectors.signal_connector": logging.WARNING,  # of SLURM's signals, which we take over
    "bitsandbytes": logging.ERROR,  # kernels that this machine does not have
    "torch.distributed.elastic.multiprocessing.redirects": logging.ERROR,
    "httpx": logging.WARNING,
}


def quieten() -> None:
    """Silence them; call this before torch, lightning, transformers or mlflow are imported."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for category in (DeprecationWarning, FutureWarning):
        warnings.filterwarnings("ignore", category=category)
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    for name, level in _LOGGERS.items():
        logging.getLogger(name).setLevel(level)
