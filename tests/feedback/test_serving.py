"""rlhf-label: links, a page that answers, an occupied port, and stopping with Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import threading
import urllib.request
from typing import Any

import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback import FeedbackStore
from rlhf_lightning.feedback.links import labeler_links
from rlhf_lightning.feedback.pages import serving
from rlhf_lightning.feedback.pages.serving import Serving, serve
from tests.programs import ENVIRONMENT, program


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do everything except answering requests."""
    monkeypatch.setattr(serving.uvicorn.Server, "run", lambda self, sockets: None)


def said(store: FeedbackStore, **settings: Any) -> list[str]:
    lines: list[str] = []
    serve(store, Serving(port=0, **settings), lines.append)
    return lines


def test_the_command_serves_until_ctrl_c_and_ends_with_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    FeedbackStore().close()
    command = [program("rlhf-label"), "labelers=[ana,bo]", "port=0"]
    environment = {name: value for name, value in {**os.environ, **ENVIRONMENT}.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:  # fmt: skip
        given_up = threading.Timer(120, process.kill)
        given_up.start()
        lines = [process.stdout.readline() for _ in range(5)]
        given_up.cancel()
        assert [line.split()[:1] for line in lines] == [["ana"], ["bo"], ["owner"], ["note:"], ["serving"]]
        link = lines[0].split()[1]
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/enter/ana", link)
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        assert b"How to judge" in opener.open(link).read()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (130, "")
    assert err == "stopped by SIGINT; every answer that was acknowledged is saved; the same command continues\n"


def test_a_taken_port_is_one_line_that_names_another(store):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"^port: {port} is in use on 127\.0\.0\.1; choose another, such as port="):
            serve(store, Serving(["ana"], port=port), print)
    assert store.labelers() == []  # nothing is added before it can be served


@pytest.mark.usefixtures("served")
def test_on_this_machine_links_hold_names_and_stay_as_they_are(store):
    first = said(store, labelers=["ana", "bo"])
    assert re.fullmatch(r"ana    http://127\.0\.0\.1:\d+/enter/ana", first[0])
    assert re.fullmatch(r"owner  http://127\.0\.0\.1:\d+/owner", first[2])
    assert [re.sub(r":\d+", "", line) for line in said(store)] == [re.sub(r":\d+", "", line) for line in first]


@pytest.mark.usefixtures("served")
def test_beyond_this_machine_a_link_holds_a_token_and_is_made_once(store):
    said(store, labelers=["ana"])
    first = said(store, labelers=["ana", "bo"], host="0.0.0.0")
    token = first[0].rpartition("/")[2]
    assert store.labeler_of_token(token).name == "ana"
    assert re.search(r"/owner/enter/\S{30,}$", first[2])
    again = said(store, host="0.0.0.0")
    assert again[0].endswith("with the previous link (renew=[ana] makes a new one)")
    renewed = said(store, host="0.0.0.0", renew=["ana"])
    assert store.labeler_of_token(token) is None
    assert store.labeler_of_token(renewed[0].rpartition("/")[2]).name == "ana"


@pytest.mark.usefixtures("served")
def test_a_proxy_in_front_asks_for_tokens_and_is_in_the_links(store):
    lines = said(store, labelers=["ana"], url="https://label.example.org")
    assert re.fullmatch(r"ana    https://label\.example\.org/enter/\S{30,}", lines[0])


@pytest.mark.usefixtures("served")
def test_a_server_for_the_network_asks_for_tokens_whatever_its_address_is_called(store):
    lines = said(store, labelers=["ana"], host="0.0.0.0", url="http://localhost:8471")
    assert re.fullmatch(r"ana    http://localhost:8471/enter/\S{30,}", lines[0])
    assert re.fullmatch(r"owner  http://localhost:8471/owner/enter/\S{30,}", lines[1])


def test_a_name_is_a_link_on_this_machine_alone(store):
    store.add_labeler("ana", link=False)
    assert labeler_links(store, ["ana"], "http://x", tokens=True)["ana"] is not None
    assert labeler_links(store, ["ana"], "http://x", tokens=True)["ana"] is None
