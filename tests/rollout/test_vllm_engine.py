"""The local engine, with an LLM that holds its own copy of the weights and samples independently."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from rlhf_lightning.errors import UserError
from rlhf_lightning.models import load_causal_lm, response_logprobs
from rlhf_lightning.rollout import SamplingSettings, VLLMEngine, VLLMRollout, seeded_generator
from rlhf_lightning.rollout.policy_weights import write_weights
from tests.rollout.fake_vllm import FakeLLM, install, serving
from tests.rollout.test_vllm_server import GREEDY, PROMPTS, assert_follows, change, native, policy, rows
from tests.rollout.test_vllm_server import engine as server_engine
from tests.tiny import tiny_model


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    install(monkeypatch)
    tiny_model().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def engine(**settings: Any) -> VLLMEngine:
    return VLLMEngine(0, [1], VLLMRollout(**settings))


def begun(folder: Path, adapter: bool) -> Any:
    """Return the policy as loaded from a folder, which it remembers."""
    model = policy(folder, adapter)
    if not adapter:
        model.config._name_or_path = str(folder)
    return model


@pytest.mark.parametrize("adapter", [False, True], ids=["all weights", "adapter"])
def test_after_every_sync_it_answers_as_the_policy_and_before_it_as_the_former_one(adapter: bool, base: Path) -> None:
    model, sampler = begun(base, adapter), engine()
    assert_follows(sampler, model)
    assert len(FakeLLM.made) == 1


def test_an_adapter_gets_a_new_number_and_the_former_one_goes_with_its_files(base: Path) -> None:
    model, sampler = begun(base, True), engine()
    for _ in range(3):
        sampler.sync(model)
    assert sampler.llm.log == ["load 1", "unload 1", "load 2", "unload 2", "load 3"]
    assert sampler._folder is not None
    folder = Path(sampler._folder.name)
    assert [path.name for path in folder.iterdir()] == ["3"]
    sampler.close()
    assert not folder.exists()


def test_cached_prompts_are_forgotten_after_all_weights_have_changed(base: Path) -> None:
    sampler = engine()
    sampler.sync(begun(base, False))
    assert sampler.llm.log == ["reload", "reset_prefix_cache"]


def test_weights_have_the_names_of_a_checkpoint(base: Path) -> None:
    """Those that vLLM's loaders know: tied weights once."""
    from safetensors.torch import load_file

    from rlhf_lightning.rollout.policy_weights import named_weights

    for model in (tiny_model(), tiny_model("gpt2")):
        model.save_pretrained(base.parent / "saved")
        saved = load_file(base.parent / "saved" / "model.safetensors")
        sent = dict(named_weights(model))
        assert sent.keys() == saved.keys()
        assert all(torch.equal(sent[name], saved[name]) for name in saved)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_log_probabilities_are_those_of_the_tempered_policy(temperature: float, base: Path) -> None:
    model, sampler = begun(base, False), engine()
    change(model)
    sampler.sync(model)
    assert sampler.llm.arguments["logprobs_mode"] == "processed_logprobs"
    settings = SamplingSettings(max_new_tokens=10, temperature=temperature)
    out = sampler.generate([[5, 6]] * 32, settings, seeded_generator("cpu", 0))
    ids = torch.tensor([[5, 6]] * 32)
    with torch.no_grad():
        again = response_logprobs(model, ids, torch.ones_like(ids), out.tokens, out.mask, temperature)
    torch.testing.assert_close(out.logprobs, again, atol=2e-5, rtol=0)


def test_every_row_has_a_seed_of_its_own_that_follows_from_the_generator(base: Path) -> None:
    sampler, settings = engine(), SamplingSettings(max_new_tokens=4)
    sampler.sync(begun(base, False))
    seeds = []
    for key in ((0, 0, 0), (0, 0, 0), (0, 0, 1), (0, 1, 0)):
        sampler.llm.requests.clear()
        sampler.generate([[5, 6]] * 8, settings, seeded_generator("cpu", "rollout", *key))
        seeds.append([request["seed"] for request in sampler.llm.requests])
    assert seeds[0] == seeds[1]
    assert len({seed for i in (0, 2, 3) for seed in seeds[i]}) == 24


@pytest.mark.parametrize("adapter", [False, True])
def test_the_trainers_random_numbers_and_threads_are_left_alone(adapter: bool, base: Path) -> None:
    model, setter = begun(base, adapter), torch.set_num_threads
    torch.manual_seed(3)
    random.seed(3)
    want = (torch.rand(2).tolist(), random.random())
    torch.manual_seed(3)
    random.seed(3)
    sampler = engine()
    sampler.sync(model)
    sampler.generate(PROMPTS, GREEDY, seeded_generator("cpu", 0))
    assert (torch.rand(2).tolist(), random.random()) == want
    assert torch.set_num_threads is setter


def test_it_computes_in_the_trainers_type_but_not_in_its_context(base: Path) -> None:
    model = begun(base, False)
    for context, name in (
        (torch.autocast("cpu", torch.bfloat16), "bfloat16"),
        (torch.autocast("cpu", enabled=False), "float32"),
    ):
        sampler = engine()
        with context:
            sampler.sync(model)
            sampler.generate(PROMPTS, GREEDY)
        assert sampler.llm.arguments["dtype"] == name
        assert sampler.llm.states == [(False, torch.float32)] * 2
    sampler = engine()
    sampler.sync(begun(base, False).to(torch.bfloat16))
    assert sampler.llm.arguments["dtype"] == "bfloat16"


def test_the_base_is_what_the_policy_was_loaded_from_and_further_arguments_are_passed_on(base: Path) -> None:
    sampler = engine(
        generation_batch_size=5, gpu_memory_utilization=0.3, engine_args={"dtype": "float16", "max_model_len": 64}
    )
    sampler.sync(begun(base, True))
    arguments = sampler.llm.arguments
    assert arguments["model"] == str(base)
    assert arguments["skip_tokenizer_init"] is True
    assert (arguments["gpu_memory_utilization"], arguments["max_num_seqs"]) == (0.3, 5)
    assert (arguments["dtype"], arguments["max_model_len"]) == ("float16", 64)
    assert (arguments["enable_lora"], arguments["max_loras"], arguments["max_lora_rank"]) == (True, 1, 8)  # of rank 4
    assert "distributed_executor_backend" not in arguments
    sampler = engine()
    sampler.sync(begun(base, False))
    assert not {"enable_lora", "max_num_seqs"} & set(sampler.llm.arguments)


@pytest.mark.parametrize(("adapter", "level"), [(False, 2), (True, 1)])
def test_it_sleeps_after_a_rollout_and_wakes_weights_before_and_cache_after_they_are_loaded(
    adapter: bool, level: int, base: Path
) -> None:
    model, sampler = begun(base, adapter), engine(sleep=True)
    sampler.sync(model)
    assert sampler.llm.arguments["enable_sleep_mode"] is True
    assert not any("wake" in line for line in sampler.llm.log)
    sampler.generate(PROMPTS, GREEDY)
    sampler.llm.log.clear()
    sampler.sync(model)
    sampler.generate(PROMPTS, GREEDY)
    loads = [line for line in sampler.llm.log if line.startswith(("load", "unload", "reload", "reset"))]
    assert len(loads) == 2
    assert sampler.llm.log == ["wake ['weights']", *loads, "wake ['kv_cache']", "generate", f"sleep {level}"]


def test_a_closed_engine_is_shut_down_and_starts_again(base: Path) -> None:
    model, sampler = begun(base, True), engine()
    sampler.close()  # nothing to do
    sampler.sync(model)
    sampler.close()
    assert FakeLLM.made[0].log[-1] == "shutdown"
    assert sampler.llm is None
    sampler.sync(model)
    assert rows(sampler.generate(PROMPTS, GREEDY)) == native(model)
    assert len(FakeLLM.made) == 2


def test_without_vllm_one_line_says_how_to_get_it(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "vllm", None)
    with pytest.raises(UserError, match=r"vLLM is not installed here; pip install .*rollout\.server=http://host:port"):
        engine().sync(begun(base, False))


@pytest.mark.parametrize("kind", [ValueError, RuntimeError])
def test_what_vllm_cannot_start_with_is_one_line(
    kind: type[Exception], base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**arguments: Any) -> None:
        raise kind("Sleep mode is not supported on current platform.")

    install(monkeypatch, refuse)
    with pytest.raises(UserError, match=r"^rollout\.engine: vLLM cannot start: Sleep mode is not supported"):
        engine(sleep=True).sync(begun(base, False))


def test_arguments_that_other_keys_decide_are_refused() -> None:
    for name in ("model", "logprobs_mode", "enable_lora", "max_num_seqs", "gpu_memory_utilization"):
        with pytest.raises(UserError, match=rf"rollout\.engine_args\.{name}: decided by "):
            VLLMRollout(engine_args={name: 1})
    with pytest.raises(UserError, match=r"tensor_parallel_size: found 2; an engine in this process has one device"):
        VLLMRollout(engine_args={"tensor_parallel_size": 2})
    with pytest.raises(UserError, match=r"beside rollout\.server give them to `vllm serve`"):
        VLLMRollout(server="http://localhost:8000", engine_args={"max_model_len": 64})
    with pytest.raises(UserError, match=r"rollout\.engine: its settings are another option: rollout=native"):
        VLLMRollout(engine="native")


def test_beside_a_process_group_that_lightning_started_it_says_which_process_it_is_in(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM reads both from the environment, where Lightning's first process has neither."""
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    engine().sync(policy(base, True))
    assert (os.environ.pop("RANK"), os.environ.pop("LOCAL_RANK")) == ("0", "0")


@pytest.mark.parametrize("settings", [{"alpha_pattern": {"q_proj": 64}}, {"modules_to_save": ["lm_head"]}])
def test_an_adapter_of_which_vllm_would_leave_out_a_part_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    adapted = get_peft_model(tiny_model(), LoraConfig(target_modules=["q_proj"], **settings))
    with pytest.raises(UserError, match=f"vLLM would leave out a part of this adapter \\({next(iter(settings))}"):
        write_weights(adapted, tmp_path)


@pytest.mark.parametrize("served", [False, True], ids=["in the process", "served"])
@pytest.mark.parametrize("layers", [["q_proj"], ["q_proj", "lm_head"]], ids=["tied", "untied by the merge"])
def test_an_output_layer_that_the_folder_ties_to_the_embedding_is_refused(
    layers: list[str], served: bool, base: Path, tmp_path: Path
) -> None:
    """vLLM reads the base's config, and skips the weights of an output layer that is tied there."""
    tied: Any = tiny_model()
    tied.config.tie_word_embeddings = True
    tied.tie_weights()
    tied.save_pretrained(tmp_path / "tied")
    adapted: Any = get_peft_model(load_causal_lm(tmp_path / "tied"), LoraConfig(r=4, target_modules=layers))
    change(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    model = load_causal_lm(tmp_path / "adapter").eval()
    with serving(tmp_path / "tied") as running:
        sampler: Any = server_engine(running) if served else engine()
        if layers == ["q_proj"]:
            sampler.sync(model)
            assert rows(sampler.generate(PROMPTS, GREEDY)) == native(model)
            return
        with pytest.raises(UserError, match=r"output layer has weights of its own.*tied/config\.json.*rlhf-export"):
            sampler.sync(model)
        model.save_pretrained(tmp_path / "whole")
        sampler.close()
    whole = load_causal_lm(tmp_path / "whole").eval()
    with serving(tmp_path / "whole") as running:
        sampler = server_engine(running) if served else engine()
        sampler.sync(whole)
        assert rows(sampler.generate(PROMPTS, GREEDY)) == native(model)
