"""The hash of a reference is computed once, and again if something has written to its weights."""

from __future__ import annotations

import pytest
import torch

from rlhf_lightning.models import fingerprint, remembered_hash
from rlhf_lightning.models.remembered_hash import RememberedHash
from tests.tiny import tiny_model


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the hashes that were computed."""
    computed: list[str] = []

    def count(network: torch.nn.Module) -> str:
        computed.append(fingerprint(network))
        return computed[-1]

    monkeypatch.setattr(remembered_hash, "fingerprint", count)
    return computed


def test_it_is_computed_once(hashed: list[str]) -> None:
    network, remembered = tiny_model().requires_grad_(False), RememberedHash()
    first = remembered.of(network)
    network(torch.tensor([[5, 6, 7]]))
    assert [remembered.of(network) for _ in range(3)] == [first] * 3
    assert hashed == [first] == [fingerprint(network)]


def test_one_number_written_in_place_is_seen(hashed: list[str]) -> None:
    network, remembered = tiny_model(), RememberedHash()
    first = remembered.of(network)
    with torch.no_grad():
        network.lm_head.weight[17, 3] += 1e-6
    assert remembered.of(network) == fingerprint(network) != first
    assert len(hashed) == 2


def test_a_step_that_torch_does_not_count_is_seen(hashed: list[str]) -> None:
    network, remembered = tiny_model(), RememberedHash()
    first = remembered.of(network)
    network.lm_head.weight.data.mul_(1.001)
    assert remembered.of(network) == fingerprint(network) != first


def test_a_copy_of_the_same_weights_has_the_same_hash() -> None:
    remembered = RememberedHash()
    assert remembered.of(tiny_model()) == remembered.of(tiny_model()) == fingerprint(tiny_model())
