"""Compare our aggregation of votes with that of the library crowd-kit, on simulated labelers whose truth is known.

pip install crowd-kit      (Apache-2.0: not a dependency of this project)
python scripts/crowdkit_agreement.py

Each of 5 worlds has 300 tasks of four responses with known scores, and five labelers: one right in 95 % of pairs, two
in 85 %, one in 65 %, and one who answers at random. Three of them vote on every pair of a task. Printed is the share of
pairs that each method decides as the scores do, and for Dawid-Skene the largest difference of a probability.
"""

from __future__ import annotations

from itertools import combinations
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_lightning.feedback.aggregation import bradley_terry, dawid_skene

WORLDS, TASKS, RESPONSES, VOTES = 5, 300, 4, 3
RIGHT = (0.95, 0.85, 0.85, 0.65, 0.5)  # how often each labeler names the better response
PAIRS = list(combinations(range(RESPONSES), 2))

Numbers = NDArray[np.int64]


def world(seed: int) -> tuple[Numbers, Numbers]:
    """Return every vote (pair, first response, second response, labeler, verdict), and which is better in each pair."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=TASKS * RESPONSES)
    places = [(RESPONSES * task + i, RESPONSES * task + j) for task in range(TASKS) for i, j in PAIRS]
    better = np.array([int(scores[second] > scores[first]) for first, second in places])
    rows = [
        (pair, first, second, labeler, better[pair] if rng.random() < RIGHT[labeler] else 1 - better[pair])
        for pair, (first, second) in enumerate(places)
        for labeler in rng.choice(len(RIGHT), VOTES, replace=False)
    ]
    return np.array(rows).T, better


def decided(votes: Numbers) -> tuple[dict[str, Numbers], float]:
    """Return what each method decides, and the largest difference of a probability of Dawid-Skene."""
    import pandas
    from crowdkit import aggregation

    pair, first, second, labeler, verdict = votes
    table = pandas.DataFrame({"task": pair, "worker": labeler, "label": verdict})
    better = np.where(verdict == 0, first, second)
    compared = pandas.DataFrame({"worker": labeler, "left": first, "right": second, "label": better})
    ours, theirs = dawid_skene(pair, labeler, verdict), aggregation.DawidSkene(n_iter=500, tol=1e-9)
    probability: Any = theirs.fit_predict_proba(table).sort_index()[1].to_numpy()
    fitted = bradley_terry(first, second, labeler, verdict).scores
    noisy = aggregation.NoisyBradleyTerry().fit_predict(compared).sort_index().to_numpy()
    places = np.unique(votes[:3].T, axis=0)
    decisions = {
        "majority": (np.bincount(pair, verdict) > VOTES / 2).astype(int),
        "Dawid-Skene, ours": (ours.posterior[:, 1] > 0.5).astype(int),
        "Dawid-Skene, crowd-kit": (probability > 0.5).astype(int),
        "Bradley-Terry, ours": (fitted[places[:, 2]] > fitted[places[:, 1]]).astype(int),
        "Bradley-Terry, crowd-kit": (noisy[places[:, 2]] > noisy[places[:, 1]]).astype(int),
    }
    return decisions, float(abs(ours.posterior[:, 1] - probability).max())


def main() -> None:
    right: dict[str, list[float]] = {}
    apart = []
    for seed in range(WORLDS):
        votes, better = world(seed)
        decisions, difference = decided(votes)
        apart.append(difference)
        for name, each in decisions.items():
            right.setdefault(name, []).append(float((each == better).mean()))
    for name, shares in right.items():
        print(f"{name:26} {fmean(shares):.1%} of pairs right ({min(shares):.1%} to {max(shares):.1%})")
    print(f"largest difference of a probability of Dawid-Skene: {max(apart):.1e}")


if __name__ == "__main__":
    main()
