"""How varied a set of responses is."""

from __future__ import annotations

from collections.abc import Sequence


def distinct_n(responses: Sequence[str], n: int) -> float:
    """Return the share of distinct n-grams among all word n-grams of the set, in (0, 1]; 0 if there are none.

    Words are lower-cased and split at white space, so that policies with different tokenizers can be compared. The
    value falls as the set grows: compare only sets with the same number of responses.

    Source: Li et al. 2016, "A diversity-promoting objective function for neural conversation models", section 5.

    >>> distinct_n(["the cat", "the dog"], 1)
    0.75
    >>> distinct_n(["a b a b"], 2)
    0.6666666666666666
    """
    if n < 1:
        raise ValueError(f"n-grams have at least one word, found n = {n}")
    seen: set[tuple[str, ...]] = set()
    total = 0
    for response in responses:
        words = response.lower().split()
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        seen.update(grams)
        total += len(grams)
    return len(seen) / total if total else 0.0


def repetition(responses: Sequence[str], n: int = 4) -> float:
    """Return the mean over responses of the share of word n-grams that repeat earlier ones, in [0, 1).

        1 - distinct n-grams / n-grams,    for each response; 0 if it has fewer than n words

    Source: Welleck et al. 2020, "Neural text generation with unlikelihood training", section 6.1 (seq-rep-n).

    >>> repetition(["a b a b a b", "a b c d e"], 2)
    0.3
    """
    shares = []
    for response in responses:
        words = response.lower().split()
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        shares.append(1 - len(set(grams)) / len(grams) if grams else 0.0)
    return sum(shares) / len(shares) if shares else 0.0


def self_bleu(responses: Sequence[str], n: int = 4) -> float:
    """Return the mean smoothed BLEU-n of each response against all others, in [0, 1]: 1 if all are the same.

    It grows with the number of responses, so compare sets of the same size; its time grows with the square.

    Raises:
        ValueError: fewer than two responses.

    Source: Zhu et al. 2018, "Texygen", section 3.1.3.

    >>> round(self_bleu(["a b c d e", "a b c d e", "v w x y z"]), 2)
    0.67
    """
    from torchmetrics.functional.text import bleu_score

    if len(responses) < 2:
        raise ValueError(f"self-BLEU compares responses with each other; found {len(responses)}")
    texts = [response.lower() for response in responses]
    scores = [
        float(bleu_score([text], [[*texts[:i], *texts[i + 1 :]]], n_gram=n, smooth=True)) if text.split() else 0.0
        for i, text in enumerate(texts)
    ]
    return sum(scores) / len(scores)
