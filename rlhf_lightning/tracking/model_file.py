"""MLflow's description of an exported model: what it takes, what it gives, and how `mlflow.pyfunc` loads it."""

from __future__ import annotations

import platform
from typing import Any

from rlhf_lightning.runs.run import Run

LOADER = "rlhf_lightning.evaluation.mlflow_model"


def put_model_file(client: Any, run_id: str, run: Run) -> None:
    """Put `MLmodel` beside the files of the run's model; only the store has it, not the run folder."""
    client.log_text(run_id, model_file(run_id, run.is_reward_model), "model/MLmodel")


def model_file(run_id: str, scores: bool) -> str:
    """Return the content of `MLmodel`: a policy takes `prompt`, a reward model `prompt` and `response`.

    Args:
        run_id: of the run in the store.
        scores: the model is a reward model.
    """
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    inputs = ["prompt", "response"] if scores else ["prompt"]
    output = ColSpec("double", "score") if scores else ColSpec("string", "response")
    sampling = [
        ParamSpec("temperature", "double", 1.0),
        ParamSpec("max_new_tokens", "long", 64),
        ParamSpec("seed", "long", 0),
    ]
    columns = Schema([ColSpec("string", name) for name in inputs]), Schema([output])
    signature = ModelSignature(*columns) if scores else ModelSignature(*columns, ParamSchema(sampling))
    described = Model(artifact_path="model", run_id=run_id, signature=signature)
    described.add_flavor("python_function", loader_module=LOADER, python_version=platform.python_version())
    return str(described.to_yaml())
