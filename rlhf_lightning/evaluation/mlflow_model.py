"""An exported model as MLflow loads it: `mlflow.pyfunc.load_model("models:/<name>/<version>").predict(rows)`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_lightning.data import PromptDataModule
from rlhf_lightning.evaluation.sampling import sample_responses
from rlhf_lightning.models import load_causal_lm, load_tokenizer
from rlhf_lightning.rewards import check_scores, make_reward
from rlhf_lightning.rollout import SamplingSettings

_AT_ONCE = 64


class Policy:
    """A model that answers prompts.

    Args:
        path: of its Hugging Face folder.
    """

    def __init__(self, path: str) -> None:
        self.model, self.tokenizer = load_causal_lm(path).eval(), load_tokenizer(path)

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> list[str]:
        """Return a response to each row's `prompt`; `params` may have `temperature`, `max_new_tokens` and `seed`."""
        given = dict(params or {})
        data = PromptDataModule(self.tokenizer, [{"prompt": str(text)} for text in model_input["prompt"]])
        data.setup("fit")
        settings = SamplingSettings(int(given.get("max_new_tokens", 64)), float(given.get("temperature", 1.0)))
        seed = int(given.get("seed", 0))
        found = sample_responses(
            self.model, self.tokenizer, data.train_prompts, settings, batch_size=_AT_ONCE, seed=seed
        )
        return [each.text for each in found]


class Scorer:
    """A reward model.

    Args:
        path: of its Hugging Face folder.
    """

    def __init__(self, path: str) -> None:
        self.reward = make_reward(model=path)

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> list[float]:
        """Return the score of each row's `response` to its `prompt`."""
        prompts, responses = ([str(text) for text in model_input[name]] for name in ("prompt", "response"))
        return check_scores(self.reward(prompts, responses), len(responses), "model")


def _load_pyfunc(path: str) -> Policy | Scorer:
    """Load the model of a folder; MLflow calls this."""
    from transformers import AutoConfig

    scores = any("SequenceClassification" in name for name in AutoConfig.from_pretrained(path).architectures or [])
    return Scorer(path) if scores else Policy(path)
