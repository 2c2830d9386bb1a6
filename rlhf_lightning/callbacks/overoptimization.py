"""Watches an on-policy run for over-optimisation with scorers that it is not trained on."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from statistics import fmean
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import TypedDict

from rlhf_lightning.data import response_texts
from rlhf_lightning.errors import UserError, named_as
from rlhf_lightning.evaluation.diversity import distinct_n, repetition
from rlhf_lightning.evaluation.overoptimization import Fall, Validation, fall
from rlhf_lightning.evaluation.refusals import check_kinds, is_refusal, refusal_rates
from rlhf_lightning.experience.held_out import HeldOut
from rlhf_lightning.judging.settings import JudgeSettings
from rlhf_lightning.models.loading import Dtype
from rlhf_lightning.rewards import RewardFunction, as_reward, make_reward, score_samples
from rlhf_lightning.setting_rules import check_reward
from rlhf_lightning.training.processes import of_every_process
from rlhf_lightning.value_checks import checked
from rlhf_lightning.value_types import Attention, Between, Count, Text

log = logging.getLogger(__name__)

SCORE = "val/held_out"
_KEY = "callbacks.overoptimization"


class HeldOutScorer(TypedDict, total=False):
    """A function, a reward model or a judge that scores responses and is not trained on.

    Attributes:
        function: a Python function (prompts, responses, **columns) -> scores, by dotted path.
        arguments: passed to the function by name.
        model: a reward model: a run folder or a Hugging Face folder.
        judge: a model that rates each response by principles.
        standardize: true: (score - mean) / std, the moments of held-out scores that a reward model carries.
        dtype: of the reward model.
        attn_implementation: of the reward model; null: what the family has.
    """

    function: Text | None
    arguments: dict[str, Any] | None
    model: Text | None
    judge: JudgeSettings | None
    standardize: bool
    dtype: Dtype
    attn_implementation: Attention | None


@dataclass(frozen=True)
class _Scored:
    """A response to a held-out prompt, with every scorer's score."""

    prompt: str
    kind: str | None
    text: str
    proxy: float
    scores: dict[str, float]


class OverOptimization(Callback):
    """Compares the reward that is trained on with scorers that are not, on the responses to held-out prompts.

    At every validation it logs the mean of each scorer (`val/held_out/<name>`; `val/held_out` is the first one's),
    `val/repetition`, `val/distinct_1`, `val/distinct_2` and the refusal rates, beside the validation's own
    `val/scores`, `val/kl` and `val/response_length`. Where the first scorer falls from its best by more than
    `tolerance` of what it had gained since the first validation, and by more than chance, it warns with the reason,
    once each time. The best checkpoint is kept by `callbacks.checkpoint` with `monitor: val/held_out`.

    Args:
        scorers: name -> a section with `function` (a dotted path), `model` (a reward model) or `judge` (its settings),
            or a function itself. The first one decides. Gold, a judge, a second reward model from other labelers: not
            the reward itself.
        tolerance: share of the gain that may be lost, in (0, 1).
        window: validations that are averaged before they are compared, at most: see `fall`.
        stop: end training there.
        batch_size: responses that a reward model scores at a time.

    Raises:
        UserError: no scorer, a scorer with other than one source, or an algorithm whose validation samples nothing.
    """

    @checked(_KEY)
    def __init__(
        self,
        scorers: Mapping[str, HeldOutScorer],
        tolerance: Between = 0.05,
        window: Count = 3,
        stop: bool = False,
        batch_size: Count = 32,
    ) -> None:
        if not scorers:
            raise UserError(f"{_KEY}.scorers: none given; give {{name: {{function, model or judge}}, ...}}")
        self.tolerance, self.window, self.stop = tolerance, window, stop
        self.scorers = {name: _made(name, given, batch_size) for name, given in scorers.items()}
        self.course: list[Validation] = []
        self._warned = self._stops = False
        self._answers: list[_Scored] = []  # of the current validation

    def state_dict(self) -> dict[str, Any]:
        """Return the validations so far, and whether the current decline has been warned of."""
        return {"course": [astuple(each) for each in self.course], "warned": self._warned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.course = [Validation(*each) for each in state_dict["course"]]
        self._warned = state_dict["warned"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Move the scorers to the policy's device, and refuse responses that they cannot read."""
        if not getattr(trainer.datamodule, "val_prompts", None):  # type: ignore[attr-defined]
            raise UserError(
                f"{_KEY}: there are no held-out prompts; give data.val or data.val_fraction, or set it to null"
            )
        check_kinds(trainer.datamodule.val_prompts)  # type: ignore[attr-defined]
        for scorer in map(as_reward, self.scorers.values()):
            scorer.check_length(pl_module.rollout.max_new_tokens)  # type: ignore[union-attr, arg-type]
            scorer.to(pl_module.device)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._answers = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Score the responses of the batch with every scorer."""
        if not isinstance(outputs, HeldOut):
            raise UserError(
                f"{_KEY}: the validation of {type(pl_module).__name__} does not return what it sampled; let its "
                "validation_step return a HeldOut, or set the callback to null"
            )
        tokenizer, prompts = pl_module.tokenizer, outputs.prompts
        responses, ended = outputs.generation.responses(), outputs.generation.ended.tolist()
        texts = response_texts(tokenizer, [row.input_ids for row in prompts], responses, ended)
        scores = {
            name: score_samples(scorer, tokenizer, prompts, responses, ended, name)
            for name, scorer in self.scorers.items()
        }
        self._answers += [
            _Scored(row.text, row.columns.get("kind"), text, proxy, {name: each[i] for name, each in scores.items()})
            for i, (row, text, proxy) in enumerate(zip(prompts, texts, outputs.scores.tolist(), strict=True))
        ]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the metrics over all processes; the module logs them with its own."""
        answers = [answer for part in of_every_process(self._answers) for answer in part]
        figures = {f"{SCORE}/{name}": fmean(each.scores[name] for each in answers) for name in self.scorers}
        first = [each.scores[next(iter(self.scorers))] for each in answers]
        prompts, texts = [each.prompt for each in answers], [each.text for each in answers]
        refused = [is_refusal(each.prompt, each.text) for each in answers]
        figures |= {SCORE: fmean(first), "val/repetition": repetition(texts), "val/refusal_rate": fmean(refused)}
        figures |= {f"val/distinct_{n}": distinct_n(texts, n) for n in (1, 2)}
        rates = refusal_rates([each.kind for each in answers], prompts, texts)
        figures |= {f"val/{name}": rate for name, rate in rates.items()}
        pl_module.record_all({name: (value, 1.0) for name, value in figures.items()})  # type: ignore[operator]
        if not trainer.sanity_checking:
            proxy = [each.proxy for each in answers]
            self.course.append(Validation.of(trainer.current_epoch + 1, proxy, first))
            self._look(trainer)
        self._answers = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop once the iteration is over."""
        trainer.should_stop = trainer.should_stop or self._stops
        self._stops = False

    def _look(self, trainer: Trainer) -> None:
        """Warn once each time the held-out score turns down, and stop if asked to."""
        found = fall(self.course, self.tolerance, self.window)
        if found.is_real and not self._warned:
            if trainer.is_global_zero:
                log.warning(self._reason(found, trainer))
            self._stops = self.stop
        self._warned = found.is_real

    def _reason(self, found: Fall, trainer: Trainer) -> str:
        best, now = (fmean(each.held_out for each in part) for part in (found.best, found.now))
        proxies = [fmean(each.proxy for each in part) for part in (found.best, found.now)]
        share = (
            f", {found.fallen / found.gained:.0%} of what it had gained since the first validation"
            if found.gained > 0
            else ""
        )
        why = (
            f"while val/scores rose from {proxies[0]:.3g} to {proxies[1]:.3g}: the policy learns the faults of the "
            "reward; raise algorithm.kl.coef, train for fewer iterations, or improve the reward"
            if found.proxy_rose
            else f"and val/scores from {proxies[0]:.3g} to {proxies[1]:.3g}: training itself goes wrong; lower "
            "optimizer.lr or raise algorithm.kl.coef"
        )
        kept = getattr(trainer.checkpoint_callback, "best_model_path", "")
        return (
            f"{SCORE} ({next(iter(self.scorers))}) fell from {best:.3g} after iteration {found.best[-1].iteration} to "
            f"{now:.3g} after iteration {found.now[-1].iteration}{share}, {why}"
            f"{f'; the best checkpoint is {kept}' if kept else ''}{'; training stops here' if self.stop else ''}"
        )


def _made(name: str, given: HeldOutScorer | RewardFunction, batch_size: int) -> RewardFunction:
    if callable(given):
        return given
    key = f"{_KEY}.scorers.{name}"
    check_reward(given, f"{key}.")
    with named_as(f"{key}.model", f"{key}."):
        return make_reward(**given, batch_size=batch_size)
