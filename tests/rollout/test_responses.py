from __future__ import annotations

import pytest
import torch

from rlhf_lightning.errors import UserError
from rlhf_lightning.rollout import SamplingSettings, seeded_generator
from rlhf_lightning.rollout.responses import Response, row_seeds, sampling_arguments, to_generation

SETTINGS = SamplingSettings(max_new_tokens=3)


def generation(*responses: Response):
    return to_generation(responses, SETTINGS, pad_id=0, eos_ids=[1, 2], device="cpu", source="the engine")


def test_rows_are_padded_on_the_right_and_their_eos_is_valid() -> None:
    out = generation(Response([5, 1], [-0.5, -1.0]), Response([7, 8, 9], [-1, -2.0, 0.0]), Response([2], [-3.0]))
    assert out.tokens.tolist() == [[5, 1, 0], [7, 8, 9], [2, 0, 0]]
    assert out.mask.tolist() == [[1, 1, 0], [1, 1, 1], [1, 0, 0]]
    assert out.logprobs.tolist() == [[-0.5, -1, 0], [-1, -2, 0], [-3, 0, 0]]
    assert out.ended.tolist() == [True, False, True]
    assert (out.tokens.dtype, out.logprobs.dtype) == (torch.long, torch.float32)


def test_the_width_is_that_of_the_longest_row() -> None:
    assert generation(Response([1], [0.0]), Response([5, 2], [0.0, 0.0])).tokens.shape == (2, 2)


@pytest.mark.parametrize(
    ("response", "fault"),
    [
        (Response([], []), "it is empty"),
        (Response([5, -1, 6], [0.0] * 3), "its tokens are not token ids"),
        (Response(["a", 5, 6], [0.0] * 3), "its tokens are not token ids"),  # type: ignore[list-item]
        (Response([5, 6, 7, 8], [0.0] * 4), "4 tokens where 3 were asked for"),
        (Response([5, 1, 6], [0.0] * 3), "it goes on after an EOS"),
        (Response([5, 6], [0.0] * 2), "it stops after 2 tokens without an EOS where 3 were asked for"),
        (Response([5, 6, 7], [0.0] * 2), "2 log-probabilities for 3 tokens"),
        (Response([5, 1], [-1.0, float("nan")]), "its log-probabilities are not numbers of at most 0"),
        (Response([5, 1], [-1.0, float("-inf")]), "its log-probabilities are not numbers of at most 0"),
        (Response([5, 1], [-1.0, 0.5]), "its log-probabilities are not numbers of at most 0"),
        (Response([5, 1], [-1.0, None]), "its log-probabilities are not numbers of at most 0"),  # type: ignore[list-item]
    ],
)
def test_a_row_that_sampling_cannot_give_is_an_error_that_says_which_and_why(response, fault) -> None:
    with pytest.raises(UserError, match=f"^the engine: the response of row 1 cannot be used: {fault}"):
        generation(Response([1], [0.0]), response)


def test_seeds_are_a_function_of_the_generators_key_and_the_row() -> None:
    draws = [row_seeds(64, seeded_generator("cpu", "rollout", *key)) for key in ((0, 0, 0), (0, 0, 0), (0, 0, 1))]
    assert draws[0] == draws[1]
    assert len({*draws[0], *draws[2]}) == 128
    assert row_seeds(8, seeded_generator("cpu", "rollout", 0, 0, 0)) != draws[0][8:16]
    assert all(0 <= seed < 2**63 for seed in draws[0])


def test_what_would_change_the_distribution_is_refused() -> None:
    for settings in (SamplingSettings(top_k=5), SamplingSettings(top_p=0.9)):
        with pytest.raises(UserError, match="after top-k and top-p"):
            sampling_arguments(settings, 0, [1])
    with pytest.raises(UserError, match=r"rollout\.temperature: found 0\.001; vLLM samples at 0\.01 or more"):
        sampling_arguments(SamplingSettings(temperature=0.001), 0, [1])
    assert sampling_arguments(SamplingSettings(temperature=0.0), 0, [1])["temperature"] == 0.0
