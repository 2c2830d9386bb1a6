from __future__ import annotations

import sys

import pytest
import torch

from rlhf_lightning.commands import plan as command
from rlhf_lightning.commands.plan import configs, plan, split_device
from rlhf_lightning.commands.planned_run import planned_run
from rlhf_lightning.errors import UserError
from rlhf_lightning.models import LoRA
from rlhf_lightning.models.adapters import add_adapter
from rlhf_lightning.planning import make_plan
from tests.tiny import tiny_model


@pytest.fixture
def model(empty_folder):
    tiny_model(layers=3).config.save_pretrained("tiny")
    return "model.path=tiny"


def run_of(*overrides):
    ((config, from_adapter),) = configs(overrides)
    return planned_run(config, from_adapter)


def test_a_config_file_alone_is_enough_and_rows_need_not_be_given(model):
    by_file = run_of("experiment=sft", "model.path=tiny/config.json")
    assert make_plan(by_file).peak == make_plan(run_of("experiment=sft", model)).peak > 0


def test_the_micro_batch_is_the_one_that_is_trained(model):
    assert run_of("experiment=sft", model, "data.batch_size=6").rows.count == 6
    assert run_of("experiment=dpo", model, "data.batch_size=6").rows.count == 12  # chosen and rejected
    ppo = run_of(
        *["experiment=ppo", model, "reward.function=my.fn", "rollout.batch_size=32", "data.max_prompt_length=10"],
        *["rollout.max_new_tokens=6", "algorithm.num_minibatches=4", "trainer.accumulate_grad_batches=2"],
    )
    assert (ppo.rows.count, ppo.rows.length, ppo.rows.scored) == (4, 16, 6)
    assert ppo.rollout is not None
    assert ppo.rollout.at_once == 32


def test_rows_without_a_limit_are_as_long_as_the_model_reads(model):
    assert run_of("experiment=sft", model, "data.max_length=null").rows.length == 128


def test_dtype_precision_and_adapter_reach_the_network(model):
    run = run_of("experiment=sft", model, "model.dtype=bfloat16", "trainer.precision=bf16-mixed", "model/adapter=lora")
    assert (run.policy.dtype, run.autocast, run.policy.lora) == (torch.bfloat16, torch.bfloat16, LoRA())
    assert run_of("experiment=sft", model, "trainer.precision=bf16-true").policy.cast_to == torch.bfloat16


@pytest.mark.parametrize(
    ("overrides", "sharding", "copies"),
    [
        (["trainer=ddp", "trainer.devices=4"], "ddp", 1),
        (["trainer.devices=4"], "ddp", 2),
        (["trainer.devices=4", "trainer.strategy=ddp"], "ddp", 2),
        (["trainer=fsdp2", "trainer.devices=4"], "fsdp2", 1),
        (["trainer=deepspeed_zero2", "trainer.devices=4"], "zero2", 1),
        (["trainer=deepspeed_zero3", "trainer.devices=4"], "zero3", 1),
        (["trainer.devices=1", "trainer.strategy=ddp"], "none", 1),
    ],
)
def test_the_strategy_says_what_is_sharded(overrides, sharding, copies, model):
    devices = run_of("experiment=sft", model, *overrides).devices
    assert (devices.sharding, devices.gradient_copies) == (sharding, copies)


def test_optimisers_differ_in_what_they_keep(model):
    copies = {name: run_of("experiment=sft", model, f"optimizer={name}").optimizer.copies for name in ("adamw", "sgd")}
    assert copies == {"adamw": 2, "sgd": 1}


def test_a_policy_that_starts_from_an_adapter_needs_its_copy(empty_folder):
    base = tiny_model()
    base.save_pretrained("base")
    base.name_or_path = "base"
    add_adapter(base, LoRA(), "CAUSAL_LM", None).save_pretrained("adapter")
    run = run_of("experiment=dpo", "model.path=adapter", "model/adapter=lora")
    assert run.starts_from_adapter
    assert make_plan(run).roles[1].weights > 0


def test_a_reward_model_that_does_not_exist_yet_is_like_the_policy(model):
    ppo = ["experiment=ppo", model, "reward.model=outputs/there/reward"]
    whole = run_of(*ppo).reward_model
    assert whole is not None
    assert not whole.shared
    assert whole.network.dtype == torch.float32
    adapter = run_of(*ppo, "model/adapter=lora").reward_model
    assert adapter is not None
    assert adapter.shared


def test_the_engine_of_the_rollouts_is_planned(model):
    ppo = ["experiment=ppo", model, "reward.function=my.fn"]
    ((config, _),) = configs([*ppo, "rollout=vllm", "rollout.gpu_memory_utilization=0.3", "rollout.sleep=true"])
    rollout = planned_run(config, device_bytes=1000).rollout
    assert rollout is not None
    assert (rollout.engine, rollout.taken, rollout.sleeps) == ("vllm", 300, True)
    assert "vLLM awake" in plan(config, device_gb=24)
    served = run_of(*ppo, "rollout=vllm", "rollout.server=http://localhost:8000").rollout
    assert served is not None
    assert (served.engine, served.taken) == ("server", 0)


def test_stages_of_a_pipeline_are_planned_from_the_first_ones_model(model):
    stages = list(configs(["pipeline=instructgpt", f"stages.sft.{model}", "stages.sft.model/adapter=lora"]))
    assert [config["model"]["path"] for config, _ in stages] == ["tiny"] * 3
    assert [from_adapter for _, from_adapter in stages] == [False, True, True]


def test_what_does_not_fit_comes_with_advice(model):
    ((config, _),) = configs(["experiment=dpo", model, "data.batch_size=64"])
    assert "it fits" in plan(config)
    text = plan(config, device_gb=0.001)
    assert "it does not fit" in text
    assert "model.activation_checkpointing=true" in text


@pytest.mark.parametrize("value", ["0", "-1", "much", "nan", "inf"])
def test_the_size_of_the_device_is_a_number(value):
    with pytest.raises(UserError, match="device_gb: found"):
        split_device([f"device_gb={value}"])


def test_a_model_that_is_not_there_is_one_line(empty_folder):
    with pytest.raises(UserError, match=r"model\.path: nowhere/at/all does not exist"):
        run_of("experiment=sft", "model.path=nowhere/at/all")
    (empty_folder / "broken.json").write_text("{}")
    with pytest.raises(UserError, match=r"model\.path: cannot read the configuration of broken\.json"):
        run_of("experiment=sft", "model.path=broken.json")


def test_the_command_prints_the_plan(model, monkeypatch, capsys):
    monkeypatch.setattr("rlhf_lightning.commands.command_line.quieten", lambda: None)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setattr(sys, "argv", ["rlhf-plan", "experiment=sft", model, "device_gb=24"])
    command.main()
    out = capsys.readouterr().out
    assert out.startswith("sft: GiB per device")
    assert "of 24 GiB, 21.6 are usable" in out
