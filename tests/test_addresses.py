"""Addresses and keys of servers that no request could use."""

from __future__ import annotations

import pytest

from rlhf_lightning.addresses import check_address, read_key
from rlhf_lightning.errors import UserError


@pytest.mark.parametrize(
    ("address", "fault"),
    [
        ("ftp://h", "must begin with http:// or https://"),
        ("h:8000", "must begin with http:// or https://"),
        ("http://", "its host, or its port, is not valid"),
        ("http://:80/v1", "its host, or its port, is not valid"),
        ("http:///v1", "its host, or its port, is not valid"),
        ("http://a..b/v1", "its host, or its port, is not valid"),
        (f"http://{'a' * 64}/v1", "its host, or its port, is not valid"),
        ("http://h\\x/v1", "its host, or its port, is not valid"),
        ("http://h%20x/v1", "its host, or its port, is not valid"),
        ("http://[::1/v1", "its host, or its port, is not valid"),
        ("http://h:abc/v1", "its host, or its port, is not valid"),
        ("http://h:80:80/v1", "its host, or its port, is not valid"),
        ("http://h:0/v1", "port must be from 1 to 65535"),
        ("http://h:65536/v1", "port must be from 1 to 65535"),
        ("http://h:4294967376/v1", "port must be from 1 to 65535"),
        ("http://a b/v1", "spaces or letters beyond ASCII"),
        ("http://h/\u00fc/v1", "spaces or letters beyond ASCII"),
        ("http://h/\n/v1", "spaces or letters beyond ASCII"),
        ("http://ana:secret@h/v1", "a user and password are not sent"),
        ("http://h/v1?x=1", r"nothing may follow after \?"),
        ("http://h/v1#m", "what follows # is not sent"),
    ],
)
def test_an_address_without_a_server_is_refused(address: str, fault: str) -> None:
    with pytest.raises(UserError, match=rf'^judge\.url: found ".*{fault}.*; give an address such as http') as raised:
        check_address("judge.url", address)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    "address",
    [
        "http://localhost:8000/v1",
        "https://api.example.org/v1/",
        "http://127.0.0.1:65535",
        "http://[::1]:80/v1",
        "http://my_host.:1/a%20b",
        "HTTP://h:/v1",
    ],
)
def test_addresses_of_servers_pass(address: str) -> None:
    check_address("judge.url", address)


def test_a_client_may_send_a_password_or_parameters() -> None:
    check_address("rollout.server", "http://ana:pw@h:1", credentials=True)
    check_address("reward.url", "http://h/score?version=2", query=True)


def test_a_client_that_sends_no_password_says_how_to_log_in() -> None:
    with pytest.raises(UserError, match=r"leave them out, and give a key by reward\.key_env; give an address") as error:
        check_address("reward.url", "http://me:hidden@host/x", log_in="give a key by reward.key_env")
    assert "hidden" not in str(error.value)


@pytest.mark.parametrize("value", ["a\nb", "a b", "\u043a\u043b\u044e\u0447", "k\x7f", " sk-1"])
def test_a_key_that_no_header_holds_is_refused_without_being_shown(value: str, monkeypatch) -> None:
    monkeypatch.setenv("K", value)
    with pytest.raises(UserError, match=r"^judge\.key_env: the environment variable K holds") as raised:
        read_key("judge.key_env", "K")
    assert value not in str(raised.value)


def test_a_blank_key_is_none(monkeypatch) -> None:
    monkeypatch.setenv("K", "  ")
    with pytest.raises(UserError, match=r"^judge\.key_env: the environment variable K is not set"):
        read_key("judge.key_env", "K")
    monkeypatch.setenv("K", "sk-1")
    assert read_key("judge.key_env", "K") == "sk-1"
