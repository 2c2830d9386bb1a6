"""Critique and revision (Bai et al. 2022, section 3): how an answer violates a principle, and a better one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rlhf_lightning.judging.comparing import PRINCIPLES, Generate, Prompt, as_text, draw, one_for_each

CRITIQUE = (
    "This is a conversation and the answer that was given.\n\n[Conversation]\n{prompt}\n\n[Answer]\n{answer}\n\n"
    "Say in a few sentences how the answer falls short of this principle: {principle}"
)
REVISION = (
    "This is a conversation, the answer that was given, and a critique of it by the principle: {principle}\n\n"
    "[Conversation]\n{prompt}\n\n[Answer]\n{answer}\n\n[Critique]\n{critique}\n\n"
    "Write the answer again so that the critique no longer holds. Reply with the new answer alone."
)


@dataclass(frozen=True)
class Step:
    """One critique and the revision that follows from it."""

    principle: str
    critique: str
    revision: str


@dataclass(frozen=True)
class Revised:
    """An answer and its critiques and revisions."""

    prompt: Prompt
    response: str
    steps: tuple[Step, ...]

    def row(self) -> dict[str, Any]:
        """Return a row for SFT: `prompt` and `completion`, the last revision."""
        said = self.steps[-1].revision
        return {
            "prompt": self.prompt,
            "completion": said if isinstance(self.prompt, str) else [{"role": "assistant", "content": said}],
        }

    def chain(self) -> dict[str, Any]:
        """Return the whole chain."""
        return {"prompt": self.prompt, "response": self.response, "steps": [asdict(step) for step in self.steps]}


def revise(
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    generate: Generate,
    principles: Sequence[str] = PRINCIPLES,
    seed: int = 0,
    rounds: int = 1,
) -> list[Revised | None]:
    """Return the chain of each response; None if the model wrote nothing, or a question was too long for it.

    Args:
        prompts: what was answered.
        responses: one per prompt.
        generate: the model.
        principles: one is drawn per response and round, a function of the seed, the round and the texts; none comes
            again for a response before all others have.
        seed: seed of the draw.
        rounds: how often critique and revision are repeated, each time on the last revision.
    """
    steps: list[tuple[Step, ...] | None] = [() for _ in prompts]
    for number in range(rounds):
        left = [i for i, chain in enumerate(steps) if chain is not None]
        answers = [chain[-1].revision if (chain := steps[i]) else responses[i] for i in left]
        drawn = [draw(_unused(principles, steps[i] or ()), seed, [number, prompts[i], responses[i]]) for i in left]
        texts = [{"prompt": as_text(prompts[i]), "answer": answer} for i, answer in zip(left, answers, strict=True)]
        asked = [{**text, "principle": principle} for text, principle in zip(texts, drawn, strict=True)]
        critiques = _said(generate, [CRITIQUE.format(**each) for each in asked])
        revisions = _said(
            generate, [REVISION.format(**each, critique=critiques[i] or "") for i, each in enumerate(asked)]
        )
        for i, principle, critique, revision in zip(left, drawn, critiques, revisions, strict=True):
            former = steps[i]
            whole = former is not None and critique and revision
            steps[i] = (*(former or ()), Step(principle, critique or "", revision or "")) if whole else None
    return [
        None if chain is None else Revised(prompt, response, chain)
        for prompt, response, chain in zip(prompts, responses, steps, strict=True)
    ]


def _unused(principles: Sequence[str], steps: Sequence[Step]) -> Sequence[str]:
    """Return the principles that a chain has used least often."""
    used = Counter(step.principle for step in steps)
    least = min(used[principle] for principle in principles)
    return [principle for principle in principles if used[principle] == least]


def _said(generate: Generate, questions: Sequence[str]) -> list[str | None]:
    texts = one_for_each(generate(questions), questions)
    return [None if text is None else text.strip() or None for text in texts]
