"""Addresses of servers: what waiting for an answer cannot correct is refused."""

from __future__ import annotations

import pytest

from rlhf_lightning.addresses import check_address
from rlhf_lightning.errors import UserError


@pytest.mark.parametrize(
    "address",
    [
        "http://localhost",
        "https://host.example:65535/v1/score?a=b%20c",
        "http://[::1]:8000/",
        "HTTP://127.0.0.1:1",
        "http://m\u00fcller.example/",
        "http://user:pass@host:80",
    ],
)
def test_an_address_of_a_server_is_accepted(address: str) -> None:
    check_address("reward.url", address)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("localhost:80", "must begin with http://"),
        ("ftp://host", "must begin with http://"),
        ("http://", "the host is missing"),
        ("http:///score", "the host is missing"),
        ("http://host:65536", "from 1 to 65535"),
        ("http://host:73713/ok", "from 1 to 65535"),
        ("http://host:0", "from 1 to 65535"),
        ("http://host:-1", "from 1 to 65535"),
        ("http://host:abc", "from 1 to 65535"),
        ("http://[::1", "must be http"),
        ("http://a..b", "not the name of a host"),
        (f"http://{'a' * 64}.b", "not the name of a host"),
        ("http://host/a b", "must have no spaces"),
        ("http://host/a\n", "must have no spaces"),
        ("http://host/\u00e9", "must be in ASCII"),
        ("http://host/a#b", "is not sent"),
    ],
)
def test_what_cannot_be_reached_is_refused_in_one_line_with_its_key(address: str, message: str) -> None:
    with pytest.raises(UserError, match=rf'^reward\.url: found "[^\n]*"; [^\n]*{message}'):
        check_address("reward.url", address)


def test_a_password_that_is_not_sent_is_refused_and_not_shown() -> None:
    with pytest.raises(UserError, match=r"^reward\.url: .*leave them out, and give a key by reward\.key_env$") as error:
        check_address("reward.url", "http://me:hidden@host/x", "give a key by reward.key_env")
    assert "hidden" not in str(error.value)
