"""How varied a set of responses is."""

from __future__ import annotations

import math
from collections import Counter
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

        BLEU = min(1, e^(1 - r / c)) (p_1 ... p_m)^(1/m),    m = n, or the response's number of words if that is less;
        p_1  = hits / n-grams,    p_k = (hits + 1) / (n-grams + 1) for k > 1

    with c words in the response and r in the other one of the closest length. It is 0 where no word recurs. It grows
    with the number of responses, so compare sets of the same size.

    Raises:
        ValueError: fewer than two responses, or n is below 1.

    Source: Zhu et al. 2018, "Texygen", section 3.1.3; smoothing: Lin and Och 2004, "ORANGE: a method for evaluating
    automatic evaluation metrics for machine translation", section 4.

    >>> round(self_bleu(["a b c d e", "a b c d e", "v w x y z"]), 2)
    0.67
    >>> self_bleu(["No", "no"]), round(self_bleu(["a b c d", "a b c e"]), 3)
    (1.0, 0.658)
    """
    if n < 1:
        raise ValueError(f"n-grams have at least one word, found n = {n}")
    if len(responses) < 2:
        raise ValueError(f"self-BLEU compares responses with each other; found {len(responses)}")
    texts = [response.lower().split() for response in responses]
    lengths = Counter(map(len, texts))
    grams = [
        Counter(tuple(words[i : i + k]) for k in range(1, n + 1) for i in range(len(words) - k + 1)) for words in texts
    ]
    most: dict[tuple[str, ...], tuple[int, int]] = {}  # the two largest counts of each n-gram in one response
    for counts in grams:
        for gram, count in counts.items():
            largest, second = most.get(gram, (0, 0))
            most[gram] = (max(largest, count), max(second, min(largest, count)))
    scores = []
    for words, counts in zip(texts, grams, strict=True):
        hits = [0] * min(n, len(words))
        for gram, count in counts.items():
            largest, second = most[gram]
            hits[len(gram) - 1] += second if count == largest else count  # at most as often as in one other response
        others = lengths - Counter([len(words)])
        scores.append(_bleu(hits, len(words), min(others, key=lambda length: (abs(length - len(words)), length))))
    return sum(scores) / len(scores)


def _bleu(hits: Sequence[int], length: int, closest: int) -> float:
    """Return the smoothed BLEU of a response from the hits of each order; an empty one is like another empty one."""
    if not length:
        return float(not closest)
    if not hits[0]:
        return 0.0
    shares = [hits[0] / length, *((found + 1) / (length - k + 1) for k, found in enumerate(hits[1:], 1))]
    return min(1.0, math.exp(1 - closest / length)) * math.prod(shares) ** (1 / len(shares))
