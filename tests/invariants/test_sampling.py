"""PPO stores the probabilities of exactly what it samples, and no two processes sample the same."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from rlhf_lightning.algorithms import PPOModule
from rlhf_lightning.data import PromptRow
from rlhf_lightning.rollout import NativeEngine, Rollout, RolloutSettings
from rlhf_lightning.rollout.native import Decoding
from tests.algorithms.conftest import SGD, count_early, ppo, trainer
from tests.tiny import tiny_model, tiny_tokenizer


class OnePrompt(PPOModule):
    """Answers one prompt many times, as the process `rank`."""

    rank = 0

    @property
    def global_rank(self) -> int:
        return self.rank

    def prompts(self) -> list[PromptRow]:
        return [self.trainer.datamodule.train_prompts[0]] * self.rollout.batch_size  # type: ignore[attr-defined]


def answers(folder: Path, rank: int, settings: RolloutSettings) -> Rollout:
    module = OnePrompt(
        tiny_model, tiny_tokenizer(), SGD, reward=count_early, rollout=settings, ppo_epochs=1, num_minibatches=1
    )
    module.rank = rank
    trainer(folder).fit(module, datamodule=ppo()[1])
    assert module.last_rollout is not None
    assert isinstance(module.engine, NativeEngine) and module.engine.decoding is Decoding  # with a cache
    return module.last_rollout


def test_responses_are_drawn_from_the_whole_tempered_policy(tmp_path: Path) -> None:
    """No filter, no minimum length: every token is as frequent as its probability, including the EOS."""
    n, temperature = 4096, 0.7
    rollout = answers(tmp_path, 0, RolloutSettings(max_new_tokens=1, batch_size=n, temperature=temperature))
    prompt = rollout.prompt_ids[0][rollout.prompt_mask[0].bool()]
    p = (tiny_model().eval()(prompt.unsqueeze(0)).logits[0, -1] / temperature).softmax(-1).detach()
    frequency = torch.bincount(rollout.response_ids[:, 0], minlength=len(p)) / n
    assert ((frequency - p).abs() <= 5 * (p * (1 - p) / n).sqrt() + 2 / n).all()
    assert p[1] > 0.001  # the EOS can be drawn at all
    torch.testing.assert_close(rollout.logprobs[:, 0], p.log()[rollout.response_ids[:, 0]], atol=1e-4, rtol=0)


def test_two_ranks_answer_the_same_prompt_differently(tmp_path: Path) -> None:
    first, second = (answers(tmp_path, rank, RolloutSettings(max_new_tokens=16, batch_size=64)) for rank in (0, 1))
    texts = [
        [ids[mask.bool()].tolist() for ids, mask in zip(r.response_ids, r.mask, strict=True)] for r in (first, second)
    ]
    long = [(a, b) for a, b in zip(*texts, strict=True) if len(a) > 4]
    assert len(long) > 32
    assert sum(a == b for a, b in long) == 0


def test_every_prompt_comes_once_a_pass_over_all_ranks_and_iterations() -> None:
    """10 prompts, 2 processes of 3: 5 iterations are 3 passes."""
    drawn: Counter[Any] = Counter()
    for epoch in range(5):
        for rank in (0, 1):
            process = SimpleNamespace(
                trainer=SimpleNamespace(datamodule=SimpleNamespace(train_prompts=list(range(10))), world_size=2),
                rollout=RolloutSettings(batch_size=3),
                current_epoch=epoch,
                global_rank=rank,
                seed=0,
            )
            process.prompt_order = partial(PPOModule.prompt_order, process)  # type: ignore[arg-type]
            rows = PPOModule.prompts(process)  # type: ignore[arg-type]
            assert len(rows) == 3
            drawn.update(rows)
    assert set(drawn.values()) == {3}


def test_a_reward_reads_every_token_but_the_eos_that_ends_the_response(tmp_path: Path) -> None:
    """A policy that writes special tokens is seen doing so, by rewards and in the sample table."""
    seen: list[str] = []

    def reward(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
        seen.extend(responses)
        return [0.0] * len(responses)

    settings = RolloutSettings(max_new_tokens=16, batch_size=32)
    module, data = ppo(reward=reward, rollout=settings, ppo_epochs=1, num_minibatches=1)
    trainer(tmp_path).fit(module, datamodule=data)
    rollout, tokenizer = module.last_rollout, tiny_tokenizer()
    wanted = []
    for ids, mask, ended in zip(rollout.response_ids, rollout.mask.bool(), rollout.ended, strict=True):
        words = tokenizer.convert_ids_to_tokens(ids[mask].tolist())
        wanted.append("".join(f" {word}" for word in (words[:-1] if ended else words)))
    assert rollout.ended.any()
    assert any("<pad>" in text for text in wanted)
    assert seen == wanted
    assert [row["response"] for row in module.last_samples] == wanted[:16]
