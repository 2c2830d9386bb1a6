"""The engine that talks to a server, with a server that holds its own copy of the weights and samples independently."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from rlhf_lightning.errors import UserError
from rlhf_lightning.models import response_logprobs
from rlhf_lightning.models.adapters import TRAINED
from rlhf_lightning.rollout import (
    NativeEngine,
    RolloutEngine,
    SamplingSettings,
    VLLMRollout,
    VLLMServer,
    seeded_generator,
)
from rlhf_lightning.rollout.vllm_client import VLLMClient
from tests.rollout.fake_vllm import FakeServer, serving, wait
from tests.tiny import tiny_model

PROMPTS = [[5, 6, 7], [8], [9, 10], [5]]
GREEDY = SamplingSettings(max_new_tokens=8, temperature=0.0)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_model().save_pretrained(folder)
    return folder


@pytest.fixture
def server(base: Path) -> Iterator[FakeServer]:
    with serving(base) as running:
        yield running


def engine(server: FakeServer, timeout: float = 20.0, **settings: Any) -> VLLMServer:
    made = VLLMRollout(server=server.address, **settings)
    return VLLMServer(0, [1], made, VLLMClient(server.address, timeout, attempts=3, pause=0.01))


def policy(base: Path, adapter: bool) -> Any:
    """Return the server's model, to be changed by `change`."""
    model: Any = tiny_model().eval()
    if adapter:
        model.name_or_path = str(base)
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")).eval()
    return model


def change(model: Any, seed: int = 1) -> None:
    """Change the trained weights."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or not hasattr(model, "peft_config"):
                parameter.add_(0.2 * torch.randn_like(parameter))


def native(model: Any, prompts: list[list[int]] = PROMPTS, settings: SamplingSettings = GREEDY) -> list[list[int]]:
    made = NativeEngine(0, [1])
    made.sync(model)
    return rows(made.generate(prompts, settings))


def rows(generation: Any) -> list[list[int]]:
    return [ids[mask.bool()].tolist() for ids, mask in zip(generation.tokens, generation.mask, strict=True)]


def assert_follows(sampler: RolloutEngine, model: Any) -> None:
    """Check that greedy tokens are the policy's after every sync, and the previous policy's before it."""
    sampler.sync(model)
    first = rows(sampler.generate(PROMPTS, GREEDY))
    assert first == native(model)
    for seed in (1, 2):
        change(model, seed)
        assert rows(sampler.generate(PROMPTS, GREEDY)) == first != native(model)
        sampler.sync(model)
        first = rows(sampler.generate(PROMPTS, GREEDY))
        assert first == native(model)


@pytest.mark.parametrize("adapter", [False, True], ids=["all weights", "adapter"])
def test_after_every_sync_it_answers_as_the_policy_and_before_it_as_the_former_one(
    adapter: bool, base: Path, server: FakeServer
) -> None:
    model, sampler = policy(base, adapter), engine(server)
    assert_follows(sampler, model)


def test_an_adapter_gets_a_new_name_and_the_former_one_goes_with_its_files(base: Path, server: FakeServer) -> None:
    model, sampler = policy(base, True), engine(server)
    names = []
    for _ in range(3):
        sampler.sync(model)
        names.append(sampler.name)
        assert set(server.adapters) == {sampler.name}
    assert len(set(names)) == 3
    another = engine(server)
    another.sync(model)
    assert another.name not in names  # a run that was killed may have left prompts in the server's cache
    assert sampler._folder is not None
    folder = Path(sampler._folder.name)
    assert [path.name for path in folder.iterdir()] == ["3"]
    sampler.close()
    assert not folder.exists()
    assert set(server.adapters) == {another.name}
    sampler.sync(model)  # it can be used again
    assert rows(sampler.generate(PROMPTS, GREEDY)) == native(model)


def test_only_the_trained_adapter_is_sent(base: Path, server: FakeServer) -> None:
    model, sampler = policy(base, True), engine(server)
    model.add_adapter("reward", model.peft_config[TRAINED])
    model.set_adapter(TRAINED)
    change(model)
    sampler.sync(model)
    assert rows(sampler.generate(PROMPTS, GREEDY)) == native(model)


def test_cached_prompts_are_forgotten_after_all_weights_have_changed(base: Path, server: FakeServer) -> None:
    sampler = engine(server)
    sampler.sync(policy(base, False))
    assert server.log == ["reload", "reset_prefix_cache"]


def test_files_are_written_where_the_server_sees_them(base: Path, server: FakeServer, tmp_path: Path) -> None:
    seen = []
    server.trouble = lambda path: seen.extend(tmp_path.rglob("*.safetensors"))  # type: ignore[func-returns-value]
    engine(server, sync_dir=str(tmp_path)).sync(policy(base, True))
    assert seen


def test_every_row_has_a_seed_of_its_own_that_follows_from_the_generator(base: Path, server: FakeServer) -> None:
    sampler, settings = engine(server), SamplingSettings(max_new_tokens=8, temperature=1.0)
    sampler.sync(policy(base, False))
    keys = [("rollout", 0, 0, 0), ("rollout", 0, 0, 0), ("rollout", 0, 0, 1), ("rollout", 0, 1, 0)]
    answers, seeds = [], []
    for key in keys:
        server.requests.clear()
        answers.append(rows(sampler.generate([[5, 6]] * 16, settings, seeded_generator("cpu", *key))))
        seeds.append(sorted(request["seed"] for request in server.requests))
    assert answers[0] == answers[1]
    assert len({tuple(row) for row in answers[0]}) > 12
    assert seeds[0] == seeds[1]
    assert len({seed for i in (0, 2, 3) for seed in seeds[i]}) == 48
    assert answers[0] != answers[2] != answers[3] != answers[0]


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_log_probabilities_are_those_of_the_tempered_policy(temperature: float, base: Path, server: FakeServer) -> None:
    model, sampler = policy(base, False), engine(server)
    change(model)
    sampler.sync(model)
    settings = SamplingSettings(max_new_tokens=10, temperature=temperature)
    out = sampler.generate([[5, 6]] * 32, settings, seeded_generator("cpu", 0))
    assert out.ended.any() and not out.ended.all()
    ids = torch.tensor([[5, 6]] * 32)
    with torch.no_grad():
        again = response_logprobs(model, ids, torch.ones_like(ids), out.tokens, out.mask, temperature)
    torch.testing.assert_close(out.logprobs, again, atol=2e-5, rtol=0)
    last = out.tokens.gather(1, out.mask.sum(1, keepdim=True).long() - 1).squeeze(1)
    assert torch.equal(last == 1, out.ended)  # the EOS is a token of the response


def test_a_server_that_reports_probabilities_before_the_temperature_is_refused(base: Path) -> None:
    with serving(base, raw_logprobs=True) as server:
        sampler = engine(server)
        sampler.sync(policy(base, False))
        with pytest.raises(UserError, match="start it with --logprobs-mode processed_logprobs"):
            sampler.generate(PROMPTS, SamplingSettings(temperature=0.7))
        sampler.generate(PROMPTS, SamplingSettings(max_new_tokens=4, temperature=1.0))  # there it is the same


def test_only_our_eos_ids_end_a_response_and_no_default_of_the_server_filters(base: Path, server: FakeServer) -> None:
    sampler = VLLMServer(0, [7, 1, 7], VLLMRollout(server=server.address))
    sampler.sync(policy(base, False))
    sampler.generate([[5]], SamplingSettings(max_new_tokens=3, temperature=1.0))
    (request,) = server.requests
    del request["seed"], request["prompt"]
    assert request == {
        **{"model": "base", "return_token_ids": True, "max_tokens": 3, "temperature": 1.0, "logprobs": 0},
        **{"stop_token_ids": [1, 7], "ignore_eos": True, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "min_tokens": 0},
        **{"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0},
    }


def test_as_many_requests_are_open_as_asked_for(base: Path, server: FakeServer) -> None:
    sampler = engine(server, generation_batch_size=3)
    sampler.sync(policy(base, False))
    server.trouble = wait(0.02)
    sampler.generate([[5]] * 12, SamplingSettings(max_new_tokens=6, temperature=0.0))
    assert 1 <= server.most_open <= 3


# ---- sleep


@pytest.mark.parametrize(("adapter", "level"), [(False, 2), (True, 1)])
def test_it_sleeps_after_a_rollout_and_wakes_weights_before_and_cache_after_they_are_loaded(
    adapter: bool, level: int, base: Path, server: FakeServer
) -> None:
    model, sampler = policy(base, adapter), engine(server, sleep=True)
    sampler.sync(model)
    sampler.generate(PROMPTS, GREEDY)
    server.log.clear()
    sampler.sync(model)
    sampler.generate(PROMPTS, GREEDY)
    loads = [line for line in server.log if line.startswith(("load", "unload", "reload", "reset"))]
    assert len(loads) == 2
    assert server.log == ["wake_up tags=weights", *loads, "wake_up tags=kv_cache", f"sleep level={level}"]


def test_without_sleep_it_is_left_awake(base: Path, server: FakeServer) -> None:
    sampler = engine(server)
    sampler.sync(policy(base, True))
    sampler.generate(PROMPTS, GREEDY)
    assert not any("sleep" in line or "wake" in line for line in server.log)


# ---- what goes wrong


@pytest.mark.parametrize(
    ("missing", "adapter", "sleep", "message"),
    [
        ("/v1/load_lora_adapter", True, False, "--enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"),
        ("/collective_rpc", False, False, r"VLLM_SERVER_DEV_MODE=1, or train an adapter: model/adapter=lora"),
        ("/wake_up", True, True, "for rollout.sleep, start it with VLLM_SERVER_DEV_MODE=1 and --enable-sleep-mode"),
    ],
)
def test_a_server_without_the_endpoint_says_how_to_start_it(
    missing: str, adapter: bool, sleep: bool, message: str, base: Path, server: FakeServer
) -> None:
    server.missing = {missing}
    with pytest.raises(UserError, match=message):
        engine(server, sleep=sleep).sync(policy(base, adapter))


def test_a_server_that_cannot_read_the_files_is_told_apart(base: Path, server: FakeServer) -> None:
    server.trouble = lambda path: (404, '{"error": {"message": "No adapter found for /x"}}') if "load" in path else None
    with pytest.raises(UserError, match=r"No adapter found for /x\. It must be able to read .*rollout\.sync_dir"):
        engine(server).sync(policy(base, True))


def test_a_cache_that_cannot_be_cleared_is_an_error(base: Path, server: FakeServer) -> None:
    server.trouble = lambda path: (200, '{"success": false}') if "reset" in path else None
    with pytest.raises(UserError, match="keeps prompts of the previous weights"):
        engine(server).sync(policy(base, False))


def test_a_server_that_died_is_one_error_after_a_few_attempts(base: Path, server: FakeServer) -> None:
    sampler = engine(server)
    sampler.sync(policy(base, True))
    server.dies_at = 2
    with pytest.raises(UserError, match=r"does not answer POST /v1/completions .* 3 attempts\); .*ckpt=last"):
        sampler.generate(PROMPTS * 8, GREEDY)
    with pytest.raises(UserError, match="does not answer POST /v1/load_lora_adapter"):
        sampler.sync(policy(base, True))


def test_a_server_that_was_started_again_goes_on_at_the_next_sync(base: Path, server: FakeServer) -> None:
    model, sampler = policy(base, True), engine(server)
    sampler.sync(model)
    server.adapters.clear()  # what a new server knows
    with pytest.raises(UserError, match="does not exist"):
        sampler.generate(PROMPTS, GREEDY)
    sampler.sync(model)
    assert rows(sampler.generate(PROMPTS, GREEDY)) == native(model)


def test_a_passing_failure_is_tried_again(base: Path, server: FakeServer) -> None:
    model, sampler = policy(base, False), engine(server)
    sampler.sync(model)
    answers = iter([(503, "no server behind this"), (502, ""), *[None] * 100])
    server.trouble = lambda path: next(answers)
    assert rows(sampler.generate([[5, 6]], GREEDY)) == native(model, [[5, 6]])


def test_a_slow_server_is_waited_for_and_not_longer_than_told(base: Path, server: FakeServer) -> None:
    model = policy(base, False)
    patient, hasty = engine(server), engine(server, timeout=0.2)
    for sampler in (patient, hasty):
        sampler.sync(model)
    server.trouble = wait(0.5)
    assert rows(patient.generate([[5, 6]], GREEDY)) == native(model, [[5, 6]])
    server.requests.clear()
    with pytest.raises(UserError, match=r"has not answered POST /v1/completions within 0\.2 s; raise rollout\.timeout"):
        hasty.generate([[5, 6]], GREEDY)


@pytest.mark.parametrize(
    "answer",
    [
        "<html>It works!</html>",
        "{}",
        "[]",
        '{"choices": []}',
        '{"choices": [{"text": "a b c"}]}',
        '{"choices": [{"token_ids": null, "logprobs": {"token_logprobs": [-1.0]}}]}',
        '{"choices": [{"token_ids": [5], "logprobs": null}]}',
    ],
)
def test_what_is_no_completion_is_one_error(answer: str, base: Path, server: FakeServer) -> None:
    sampler = engine(server)
    sampler.sync(policy(base, False))
    server.trouble = lambda path: (200, answer) if "completions" in path else None
    with pytest.raises(UserError, match=r"does not answer as vLLM's /v1/completions .* found "):
        sampler.generate(PROMPTS, GREEDY)


def test_a_response_that_cannot_be_one_is_an_error_with_its_row(base: Path, server: FakeServer) -> None:
    sampler = engine(server)
    sampler.sync(policy(base, False))
    cut = '{"choices": [{"token_ids": [5], "logprobs": {"token_logprobs": [-1.0]}}]}'
    server.trouble = lambda path: (200, cut) if "completions" in path else None
    with pytest.raises(UserError, match=r"row 0 cannot be used: it stops after 1 tokens .* max_model_len"):
        sampler.generate(PROMPTS, GREEDY)


def test_a_server_without_a_model_is_an_error(base: Path, server: FakeServer) -> None:
    server.trouble = lambda path: (200, '{"data": []}') if "models" in path else None
    with pytest.raises(UserError, match="lists no model under /v1/models"):
        engine(server).sync(policy(base, False))


def test_the_key_of_the_environment_is_sent_along(
    base: Path, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "abc")
    engine(server).sync(policy(base, True))
    assert server.headers[0]["Authorization"] == "Bearer abc"


def test_a_user_and_password_in_the_address_are_sent_and_never_shown(
    base: Path, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "abc")
    monkeypatch.setattr(server, "address", server.address.replace("://", "://ana:p%40ss@"))
    engine(server).sync(policy(base, True))
    assert server.headers[0]["Authorization"] == "Basic " + base64.b64encode(b"ana:p@ss").decode()
    server.trouble = lambda path: (200, '{"data": []}') if "models" in path else None
    with pytest.raises(UserError, match="lists no model") as error:
        engine(server).sync(policy(base, False))
    assert "p%40ss" not in str(error.value)


def test_the_samples_of_a_prompt_have_seeds_of_their_own(base: Path, server: FakeServer) -> None:
    sampler = engine(server, samples_per_prompt=6)
    sampler.sync(policy(base, adapter=False))
    settings = SamplingSettings(max_new_tokens=12)
    first, again = (sampler.generate([[5, 6]] * 6, settings, seeded_generator("cpu", 0)) for _ in range(2))
    assert rows(first) == rows(again) and len({tuple(row) for row in rows(first)}) >= 5
