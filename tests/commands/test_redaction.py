"""Secrets are used, and never shown, saved or logged."""

from __future__ import annotations

import json

import pytest

from rlhf_lightning import secret_text
from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.runs.model_card import model_card
from rlhf_lightning.runs.resuming import differences
from rlhf_lightning.runs.run import read_run
from rlhf_lightning.runs.run_folder import write_config
from rlhf_lightning.secret_text import shown, without_secrets
from rlhf_lightning.tracking.contents import flat_parameters
from rlhf_lightning.tracking.store import ui_command
from rlhf_lightning.tracking.store_check import _probe
from tests.commands.runs import write_run

PASSWORD = "hunter2-and-more"


@pytest.mark.parametrize(
    "text",
    [
        f"https://ana:{PASSWORD}@host/path",
        f"postgresql+psycopg2://ana:{PASSWORD}@host:5432/db",
        f"http://{PASSWORD}@host",
        f"https://host/x?a=1&api_key={PASSWORD}&b=2",
        f"https://host/x?X-Amz-Signature={PASSWORD}",
        f"two: http://a:{PASSWORD}@b and http://c:{PASSWORD}@d",
        f"https://ana:x@{PASSWORD}@host/path",
        f"https://ana:x/{PASSWORD}@host",
        f"https://ana:it's'{PASSWORD}@host",
        f"https://host/x#access_token={PASSWORD}",
        f"mssql+pyodbc:///?odbc_connect=Driver=x;Server=host;UID=sa;PWD={PASSWORD}",
        f"{{'Authorization': 'Basic {PASSWORD}'}} sent to host",
        f"host says: Authorization: Bearer {PASSWORD}",
        f'host says {{"api_key": "{PASSWORD}"}}',
        f"host: MLFLOW_TRACKING_PASSWORD={PASSWORD}",
        "host refuses hf_abcdefghijklmnopqrstuvwxyz".replace("abcdefghijklmnopqrst", "hunter2andmoreabcdef"),
    ],
)
def test_no_password_of_an_address_is_shown(text):
    assert PASSWORD not in shown(text)
    assert "host" in shown(text) or "b and" in shown(text)


@pytest.mark.parametrize(
    "key",
    [
        *(
            "api_key",
            "token",
            "hf_token",
            "OPENAI_API_KEY",
            "password",
            "db-password",
            "client_secret",
            "Authorization",
        ),
        *(
            "x-api-key",
            "apiKey",
            "accessToken",
            "PGPASSWORD",
            "passphrase",
            "credentials",
            "auth",
            "token_2",
            "secrets",
        ),
    ],
)
def test_a_value_under_a_key_that_says_so_is_hidden(key):
    assert without_secrets({"logger": {"tags": {key: PASSWORD}}}) == {"logger": {"tags": {key: "***"}}}


@pytest.mark.parametrize("value", [{"name": PASSWORD}, [PASSWORD], [{"a": [PASSWORD]}], 12345678])
def test_everything_under_such_a_key_is_hidden(value):
    hidden = json.dumps(without_secrets({"credentials": value}))
    assert PASSWORD not in hidden
    assert "12345678" not in hidden


@pytest.mark.parametrize(
    "text",
    [
        "the token '<eos>' has the id 3; found tokens: 12, keys: a, b",
        "http://host:5000/path/with@sign is asked",
        "pad_token='<pad>' eos_token: '<eos>' max_new_tokens=8",
        "optimizer.lr=0.1 is learned by the basic configuration of task-1-with-a-long-name-in-2026",
        "sqlite:///outputs/mlflow.db",
    ],
)
def test_ordinary_messages_stay(text):
    assert shown(text) == text


def test_a_secret_of_the_config_is_hidden_wherever_it_is_quoted(monkeypatch):
    monkeypatch.setattr(secret_text, "_values", {})
    monkeypatch.setenv("HF_TOKEN", "a-value-of-no-form")
    overrides = [
        *("experiment=sft", "model.path=x", "data.train=x.jsonl", f"+logger.tags.api_key={PASSWORD}"),
        "logger.tracking_uri='http://ana:s%2Fcret-word@host:1'",
        "+logger.tags.note='at ${oc.env:HOME}/x'",
    ]
    config = compose_config("train", overrides)
    for text in (PASSWORD, "s%2Fcret-word", "s/cret-word", "YW5hOnMvY3JldC13b3Jk", "a-value-of-no-form"):
        assert text not in shown(f"the library says: {text!r}, and so on")
    home = config["logger"]["tags"]["note"]
    assert shown(home) == home  # the working folder is not a secret


@pytest.mark.parametrize("key", ["max_new_tokens", "tokens_per_microbatch", "eos_token_id", "token_budget", "monkey"])
def test_other_keys_stay(key):
    assert without_secrets({key: 8}) == {key: 8}


def test_a_value_from_the_environment_is_saved_as_the_expression_that_gives_it(monkeypatch, tmp_path):
    monkeypatch.setenv("RLHF_TEST_SECRET", PASSWORD)
    overrides = [
        "experiment=sft",
        "model.path=x",
        "data.train=x.jsonl",
        "+logger.tags.who='${oc.env:RLHF_TEST_SECRET}'",
    ]
    config = compose_config("train", overrides)
    assert config["logger"]["tags"]["who"] == PASSWORD  # it is used
    write_config(tmp_path, config)
    saved = (tmp_path / "config.yaml").read_text()
    assert PASSWORD not in saved
    assert "${oc.env:RLHF_TEST_SECRET}" in saved
    assert PASSWORD not in json.dumps(flat_parameters(config))
    assert PASSWORD not in shown(f"found {PASSWORD}")
    assert list(differences(without_secrets(config), without_secrets(config))) == []


def test_a_card_has_neither_the_logger_nor_a_password(tmp_path):
    logger = {"tracking_uri": f"https://ana:{PASSWORD}@host", "tags": {"note": PASSWORD}}
    run = read_run(write_run(tmp_path / "run", logger=logger, data={"train": f"https://a:{PASSWORD}@b/x.jsonl"}))
    assert run is not None
    assert PASSWORD not in model_card(run, "name", "name", adapter=False, chat=False)


def test_a_card_leaves_tags_out_that_are_all_the_logger_has(tmp_path):
    run = read_run(write_run(tmp_path / "run", logger={"tags": {"note": PASSWORD}}))
    assert run is not None
    assert PASSWORD not in model_card(run, "name", "name", adapter=False, chat=False)


def test_an_address_with_a_password_is_asked_with_it_in_a_header():
    request = _probe(f"http://ana:{PASSWORD}@127.0.0.1:5000/mlflow/")
    assert (
        request.full_url
        == "http://127.0.0.1:5000/mlflow/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default"
    )
    assert request.get_header("Authorization").startswith("Basic ")
    assert PASSWORD not in ui_command(f"http://ana:{PASSWORD}@127.0.0.1:5000")
