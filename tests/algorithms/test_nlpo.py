"""NLPO: masks as they were sampled with, a copy that lags and reaches sampling, and what is refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from rlhf_lightning.algorithms import KLPenalty, NLPOModule
from rlhf_lightning.callbacks import ReproducibleResume
from rlhf_lightning.commands import train
from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.errors import UserError
from rlhf_lightning.functional import count_allowed, unpack_allowed
from rlhf_lightning.models import fingerprint, predict_tokens, response_logprobs
from rlhf_lightning.models.lagging import LaggingPolicy
from rlhf_lightning.rollout import NativeEngine, RolloutSettings, SamplingSettings, TopPMask, seeded_generator
from rlhf_lightning.rollout.masked import MaskedDecoding, MaskedUncachedDecoding
from tests.algorithms.conftest import SGD, count_early, on_policy, trainer
from tests.algorithms.test_ppo import STILL, run
from tests.tiny import tiny_model, tiny_tokenizer

FOUR = RolloutSettings(max_new_tokens=6, batch_size=4, samples_per_prompt=4)


def moved(model: Any, seed: int = 1) -> Any:
    """Return the model with noise on its weights."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def full_logits(model: Any, prompt: list[int], response: list[int]) -> torch.Tensor:
    """Return the logits that each response token is predicted from, [T, V]."""
    ids = torch.tensor([prompt + response])
    with torch.no_grad():
        return model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("cached", [True, False])
def test_tokens_are_sampled_from_the_policy_over_the_nucleus_of_the_copy(family: str, cached: bool) -> None:
    """Masks and log-probabilities against forward passes over whole rows, of two networks, at a temperature."""
    policy, copy = moved(tiny_model(family)).eval(), tiny_model(family).eval()
    lagging = LaggingPolicy(tiny_model(family))
    lagging.policy = lagging._caller.policy = policy  # the copy keeps the weights of the start
    policy.decodes_with_cache = cached
    engine = NativeEngine(pad_id=0, eos_ids=[1], batch_size=3, samples_per_prompt=2)
    assert engine.restrict(TopPMask(lagging, 0.6, [1, 10_000]))
    engine.sync(policy)
    assert engine.decoding is (MaskedDecoding if cached else MaskedUncachedDecoding)
    prompts = [prompt for prompt in ([3, 4, 5], [6], [7, 8], [9, 3, 4, 5, 6]) for _ in range(2)]
    before = fingerprint(policy)
    out = engine.generate(prompts, SamplingSettings(max_new_tokens=7, temperature=0.8), seeded_generator("cpu", 3))
    assert fingerprint(policy) == before
    excluded = 0
    for prompt, tokens, bits, logprobs in zip(prompts, out.responses(), out.allowed, out.logprobs, strict=True):
        of_policy, of_copy = (full_logits(model, prompt, tokens) / 0.8 for model in (policy, copy))
        for t, token in enumerate(tokens):
            ordered, order = of_copy[t].softmax(-1).sort(descending=True)
            inside = set(order[: int((ordered.cumsum(0) < 0.6).sum()) + 1].tolist()) | {1}
            allowed = unpack_allowed(bits[t], of_policy.shape[-1])
            assert set(allowed.nonzero().flatten().tolist()) == inside
            assert token in inside
            excluded += len(allowed) - len(inside)
            expected = of_policy[t].masked_fill(~allowed, -torch.inf).log_softmax(-1)[token]
            assert float(logprobs[t]) == pytest.approx(float(expected), abs=1e-4)
    assert excluded > 0


def test_the_masks_of_the_rollout_are_those_of_losses_and_of_the_kl(tmp_path: Path) -> None:
    """The copy moves on at the end of the iteration; the rollout's masks stay."""
    module, data = on_policy("nlpo", mask_top_p=0.5, mask_refresh=1, rollout=FOUR, optimizer=SGD)
    watch = run(tmp_path, module, data, max_epochs=2)
    rollout = module.last_rollout
    tokens = (rollout.prompt_ids, rollout.prompt_mask, rollout.response_ids, rollout.mask)
    bits = rollout.allowed[rollout.mask.bool()]
    vocabulary = module.policy.config.vocab_size
    ends = unpack_allowed(bits, vocabulary)[:, module.tokenizer.eos_token_id]
    assert bool(ends.all())
    counts = count_allowed(rollout.allowed) * rollout.mask
    assert watch.last["rollout/allowed_tokens"] == pytest.approx(float(counts.sum() / rollout.mask.sum()))
    assert float(counts.max()) < vocabulary
    reference = response_logprobs(tiny_model(), *tokens, 1.0, rollout.allowed)
    torch.testing.assert_close(rollout.ref_logprobs, reference, atol=1e-5, rtol=0)
    assert watch.last["rollout/logprob_gap_max"] < 1e-4
    free = response_logprobs(tiny_model(), *tokens)
    assert float((free - reference).abs().max()) > 0.1


def test_the_refreshed_copy_reaches_sampling_and_only_at_its_iteration(tmp_path: Path) -> None:
    """The bug of RL4LMs: a copy that is refreshed, while sampling goes on under the masks of the first one."""
    used: list[str] = []

    class Recorded(NLPOModule):
        def collect(self) -> Any:
            rollout = super().collect()
            whole = {name: weight.clone() for name, weight in self.lagging.weights.items()}
            used.append(str(sorted((name, float(w.double().sum())) for name, w in whole.items())))
            current = {name: p.detach() for name, p in self.policy.named_parameters()}
            fresh.append(all(torch.equal(whole[name], current[name]) for name in whole))
            mask = self.engine.mask
            assert mask.lagging is self.lagging
            logits = mask.lagging(lambda: full_logits(self.policy, *row_of(rollout, 0)))
            assert torch.equal(unpack_allowed(rollout.allowed[0, 0], logits.shape[-1]), mask(logits[:1], 1.0)[0])
            return rollout

    fresh: list[bool] = []
    module, data = on_policy("nlpo", mask_top_p=0.5, mask_refresh=2, rollout=FOUR, optimizer=SGD)
    module.__class__ = Recorded
    run(tmp_path, module, data, max_epochs=5)
    assert fresh == [True, False, True, False, True]
    assert len(set(used)) == 3 and used[0] == used[1] and used[2] == used[3]


def row_of(rollout: Any, i: int) -> tuple[list[int], list[int]]:
    """Return prompt and response of a row of a rollout."""
    prompt = rollout.prompt_ids[i][rollout.prompt_mask[i].bool()].tolist()
    return prompt, rollout.response_ids[i][rollout.mask[i].bool()].tolist()


def test_a_copy_that_was_refreshed_before_the_cut_is_resumed(tmp_path: Path) -> None:
    """Bitwise; a copy that began again with the start's weights would sample under other masks."""

    def fit(folder: str, epochs: int, resume: Path | None = None) -> Any:
        module, data = on_policy("nlpo", mask_top_p=0.5, mask_refresh=2, rollout=FOUR, optimizer=SGD)
        torch.manual_seed(epochs)
        save = ModelCheckpoint(tmp_path / folder, filename="cut", every_n_epochs=2)
        own = {"enable_checkpointing": True, "callbacks": [save, ReproducibleResume()], "max_epochs": epochs}
        trainer(tmp_path, **own).fit(module, datamodule=data, ckpt_path=resume)
        return module

    whole = fit("whole", 3)
    fit("cut", 2)
    resumed = fit("rest", 3, tmp_path / "cut/cut.ckpt")
    assert fingerprint(resumed.policy) == fingerprint(whole.policy)
    assert torch.equal(resumed.last_rollout.allowed, whole.last_rollout.allowed)
    for name, weight in whole.lagging.weights.items():
        assert torch.equal(resumed.lagging.weights[name], weight)


def test_a_nucleus_of_everything_is_ppo(tmp_path: Path) -> None:
    """Bitwise, the samples too."""
    shared = {"rollout": FOUR, "optimizer": SGD, "kl": KLPenalty(kind="fixed", coef=0.1, target=None, horizon=None)}
    found = []
    for name, own in (("ppo", {}), ("nlpo", {"mask_top_p": 1 - 1e-12})):
        module, data = on_policy(name, **shared, **own)
        run(tmp_path, module, data, max_epochs=2)
        found.append((module.last_rollout.response_ids, fingerprint(module.policy)))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def test_the_copy_is_resumed_and_shares_what_is_frozen() -> None:
    policy = tiny_model()
    policy.model.layers[0].requires_grad_(False)
    lagging = LaggingPolicy(policy)
    assert set(lagging.weights) == {name for name, p in policy.named_parameters() if p.requires_grad}
    state = {name: weight.clone() for name, weight in lagging.state_dict().items()}
    moved(policy)
    ids, flags = torch.tensor([[3, 4, 5, 6]]), torch.tensor([[0, 0, 1, 1]])
    with torch.no_grad():
        before = lagging(lambda: predict_tokens(policy, ids, flags).logprobs)
        lagging.refresh()
        after = lagging(lambda: predict_tokens(policy, ids, flags).logprobs)
        assert torch.equal(after, predict_tokens(policy, ids, flags).logprobs)
        assert not torch.equal(before, after)
        lagging.load_state_dict(state)
        assert torch.equal(lagging(lambda: predict_tokens(policy, ids, flags).logprobs), before)
    with pytest.raises(ValueError, match="lagging copy"):
        lagging.load_state_dict({})


def test_an_engine_that_cannot_mask_is_refused() -> None:
    class Other:
        def sync(self, model: Any) -> None: ...

        def generate(self, *args: Any) -> Any: ...

    module = NLPOModule(tiny_model, tiny_tokenizer(), STILL, reward=count_early, engine=Other(), rollout=FOUR)
    with pytest.raises(UserError, match=r"^rollout\.engine: Other cannot sample under NLPO's masks; choose rollout=na"):
        module.configure_model()
    lines = ["model.path=org/name", "data.train=org/rows", "reward.function=rlhf_lightning.simulation.gold_reward"]
    with pytest.raises(UserError, match=r"^rollout\.engine: found vllm, which cannot sample as NLPOModule does"):
        train.check(compose_config("train", ["experiment=nlpo", *lines, "rollout=vllm"]))
    for top_p in ("1.0", "0", "1.5"):
        with pytest.raises(UserError, match=r"^algorithm\.mask_top_p: found"):
            train.check(compose_config("train", ["experiment=nlpo", *lines, f"algorithm.mask_top_p={top_p}"]))
    train.check(compose_config("train", ["experiment=nlpo", *lines]))


def test_dropout_does_not_reach_the_copy() -> None:
    lagging = LaggingPolicy(tiny_model("gpt2", dropout=0.5).eval())
    ids, flags = torch.tensor([[3, 4, 5, 6]]), torch.tensor([[0, 0, 1, 1]])
    with torch.no_grad():
        twice = [lagging(partial(predict_tokens, lagging.policy, ids, flags)).logprobs for _ in range(2)]
    assert torch.equal(*twice)
