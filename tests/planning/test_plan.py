from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rlhf_lightning.models import NF4, LoRA
from rlhf_lightning.planning import (
    Devices,
    Loss,
    Network,
    Optimizer,
    RewardModel,
    Rollout,
    Rows,
    Run,
    advice_table,
    advise,
    make_plan,
    plan_table,
)
from tests.tiny import tiny_model

POLICY = Network("plan", tiny_model(layers=3).config, "CAUSAL_LM", torch.float32)
LORA = replace(POLICY, lora=LoRA(rank=4))
SFT = Run("sft", POLICY, Rows(4, 24, 23))
DPO = replace(SFT, roles=("policy", "reference"), pairs=True, keeps_reference=True)
PPO = Run(
    "ppo",
    POLICY,
    Rows(4, 24, 16),
    roles=("policy", "reference", "critic", "reward"),
    loss=Loss(value=True),
    rollout=Rollout(rows=16, at_once=16, prompt=8, response=16),
    reward_model=RewardModel(replace(POLICY, task="SEQ_CLS"), rows=8),
)


def roles(run) -> dict:
    return {role.name: role for role in make_plan(run).roles}


def phases(run) -> dict:
    return {phase.name: phase for phase in make_plan(run).phases}


def test_all_weights_have_a_gradient_and_the_optimisers_copies():
    policy = roles(SFT)["policy"]
    assert (policy.gradients, policy.optimizer) == (policy.weights, 2 * policy.weights)
    assert roles(replace(SFT, optimizer=Optimizer(1)))["policy"].optimizer == policy.weights
    assert roles(replace(SFT, optimizer=Optimizer(0)))["policy"].optimizer == 0


def test_decoding_reads_a_copy_of_the_weights_on_cpus_where_that_is_faster(monkeypatch):
    monkeypatch.setattr("rlhf_lightning.planning.plan.onednn_is_faster", lambda: True)
    assert phases(PPO)["rollout: sampling"].buffers == 0
    on_a_cpu = replace(PPO, devices=Devices(cpu=True))
    assert phases(on_a_cpu)["rollout: sampling"].buffers == POLICY.weights().total
    assert phases(replace(on_a_cpu, autocast=torch.bfloat16))["rollout: sampling"].buffers == 0


def test_an_adapter_alone_has_them_where_there_is_one():
    policy = roles(replace(SFT, policy=LORA))["policy"]
    assert policy.gradients == LORA.weights().trainable < policy.weights / 3


def test_the_reference_is_a_copy_an_adapter_or_nothing():
    assert roles(DPO)["reference"].weights == POLICY.weights().total
    assert roles(replace(DPO, policy=LORA))["reference"].weights == 0
    assert roles(replace(DPO, policy=LORA, starts_from_adapter=True))["reference"].weights == LORA.adapter_bytes()
    assert roles(replace(PPO, policy=LORA, separate=True))["reference"].weights == LORA.weights().total
    assert roles(replace(DPO, keeps_reference=False))["reference"].weights == 0


def test_a_precomputed_reference_is_there_before_training_only():
    before = phases(replace(DPO, keeps_reference=False))["reference"]
    assert before.before_training
    assert before.buffers == POLICY.weights().total
    plan = make_plan(replace(DPO, keeps_reference=False))
    assert plan.total(before) == 2 * POLICY.weights().total + before.activations + before.logits


def test_a_reference_has_the_type_of_the_policy():
    half = replace(DPO, policy=replace(POLICY, cast_to=torch.bfloat16))
    assert roles(half)["policy"].weights == roles(half)["reference"].weights == POLICY.weights().total // 2


def test_an_average_is_a_copy_in_float32_of_what_is_trained():
    assert "average" not in roles(SFT)
    assert roles(replace(SFT, averaged=True))["average"].weights == POLICY.weights().trainable
    half = replace(SFT, policy=replace(POLICY, cast_to=torch.bfloat16), averaged=True)
    assert roles(half)["average"].weights == POLICY.weights().trainable == 2 * half.policy.weights().trainable
    assert roles(replace(SFT, policy=LORA, averaged=True))["average"].weights == LORA.weights().trainable


def test_a_lagging_policy_is_a_copy_of_what_is_trained_and_has_a_cache():
    nlpo = replace(PPO, roles=(*PPO.roles, "lagging"))
    assert roles(nlpo)["lagging policy"].weights == POLICY.weights().trainable
    on_adapter = replace(nlpo, policy=LORA)
    assert roles(on_adapter)["lagging policy"].weights == LORA.weights().trainable < POLICY.weights().total
    assert phases(nlpo)["rollout: sampling"].kv_cache == 2 * phases(PPO)["rollout: sampling"].kv_cache


def test_a_cost_has_a_critic_and_a_model_of_its_own():
    everyone = ("policy", "reference", "critic", "cost_critic", "reward", "cost")
    both = replace(PPO, roles=everyone, cost_model=RewardModel(replace(POLICY, task="SEQ_CLS"), rows=8))
    assert roles(both)["value head of the cost"].weights == roles(both)["value head"].weights
    assert roles(both)["cost model"].weights == roles(both)["reward model"].weights > 0
    assert "cost critic" not in roles(both)
    assert phases(both)["rollout: cost model"].total > 0
    apart = replace(both, separate=True)
    assert roles(apart)["cost critic"].optimizer == roles(apart)["critic"].optimizer > 0
    assert phases(apart)["backward"].activations > phases(replace(PPO, separate=True))["backward"].activations


def test_separate_layout_adds_a_trained_critic_without_an_output_layer():
    critic = roles(replace(PPO, separate=True))["critic"]
    assert critic.optimizer == 2 * critic.gradients
    assert 0 < critic.weights < POLICY.weights().total
    assert "critic" not in roles(PPO)


def test_a_shared_reward_model_costs_its_adapter():
    shared = replace(PPO, policy=LORA, reward_model=RewardModel(LORA, rows=8, shared=True))
    assert roles(shared)["reward model"].weights == LORA.adapter_bytes()
    half = replace(LORA, dtype=torch.bfloat16)  # the trained adapter stays in float32, a frozen one does not
    in_half = replace(shared, policy=half, reward_model=RewardModel(half, rows=8, shared=True))
    assert roles(in_half)["reward model"].weights == LORA.adapter_bytes() // 2 == half.adapter_bytes() // 2
    assert roles(PPO)["reward model"].weights > roles(shared)["reward model"].weights


@pytest.mark.parametrize(
    ("sharding", "weights", "gradients", "optimizer"),
    [("ddp", 1, 1, 1), ("zero1", 1, 1, 4), ("zero2", 1, 4, 4), ("zero3", 4, 4, 4), ("fsdp2", 4, 4, 4)],
)
def test_each_strategy_divides_what_it_shards(sharding, weights, gradients, optimizer):
    alone = roles(SFT)["policy"]
    part = roles(replace(SFT, devices=Devices(4, sharding)))["policy"]
    assert part.weights == alone.weights // weights
    assert part.gradients == alone.gradients // gradients
    assert part.optimizer == alone.optimizer // optimizer


def test_ddp_without_bucket_views_has_gradients_twice():
    assert roles(replace(SFT, devices=Devices(4, "ddp", 2)))["policy"].gradients == 2 * roles(SFT)["policy"].gradients


def test_a_rollout_under_fsdp2_gathers_all_weights():
    sharded = phases(replace(PPO, devices=Devices(4, "fsdp2")))
    assert sharded["rollout: sampling"].buffers == POLICY.weights().total
    assert 0 < sharded["forward"].buffers < POLICY.weights().total


def test_fsdp2_sends_bfloat16_under_bf16_mixed():
    sharded = replace(PPO, devices=Devices(4, "fsdp2"))
    mixed = replace(sharded, autocast=torch.bfloat16)
    assert phases(mixed)["rollout: sampling"].buffers == POLICY.weights().total // 2
    assert roles(mixed)["policy"].weights == roles(sharded)["policy"].weights
    assert roles(mixed)["reference"].weights == roles(sharded)["reference"].weights // 2


def test_full_training_in_16_bit_weights_is_not_advised():
    words = [change.overrides for change in advise(SFT, 0)[0]]
    assert "trainer.precision=bf16-mixed" in words
    assert not any("bf16-true" in word for word in words)


def test_accumulated_gradients_are_alive_in_the_backward_pass():
    once, twice = (phases(replace(SFT, accumulate=n))["backward"].gradients for n in (1, 2))
    assert twice == roles(SFT)["policy"].gradients > once


def test_between_steps_there_are_no_gradients_but_in_buckets():
    for run in (PPO, SFT):
        gradients = sum(role.gradients for role in roles(run).values())
        assert {phase.gradients for name, phase in phases(run).items() if name[:7] in ("forward", "rollout")} == {0}
        assert phases(replace(run, accumulate=2))["forward"].gradients == gradients
        for copies in (1, 2):
            buckets = replace(run, devices=Devices(4, "ddp", copies))
            assert phases(buckets)["forward"].gradients == gradients
    assert phases(replace(PPO, accumulate=2))["rollout: sampling"].gradients == 0


def test_longer_rows_and_larger_batches_cost_activations():
    small = phases(SFT)["forward"].activations
    assert phases(replace(SFT, rows=Rows(8, 24, 23)))["forward"].activations == pytest.approx(2 * small, rel=0.1)
    assert phases(replace(SFT, rows=Rows(4, 48, 47)))["forward"].activations > 1.9 * small


def test_a_second_loss_is_added_to_the_first():
    extra = replace(PPO, extra=Rows(4, 24, 23))
    assert phases(extra)["backward"].activations > 1.8 * phases(PPO)["backward"].activations


def test_the_peak_is_that_of_the_largest_phase():
    plan = make_plan(PPO)
    assert plan.peak == max(plan.total(phase) for phase in plan.phases)
    resident = sum(role.weights + role.optimizer for role in plan.roles)
    assert plan.peak == resident + plan.largest.total


def test_the_table_names_roles_phases_and_whether_it_fits():
    plan = make_plan(PPO)
    text = plan_table(plan, 80)
    for name in ("policy", "value head", "reference", "reward model", "rollout: sampling", "optimiser step", "<- peak"):
        assert name in text
    assert text.endswith("it fits")
    assert plan_table(plan, plan.peak / 2**30).endswith("it does not fit")  # a tenth is not usable


def test_each_piece_of_advice_leads_to_the_peak_it_tells():
    run = replace(DPO, rows=Rows(32, 48, 47))
    peak = make_plan(run).peak
    single, combined = advise(run, room=2**40)
    told = {change.overrides: change.peak for change in single}
    checkpointed = replace(run, policy=replace(POLICY, activation_checkpointing=True))
    assert told["model.activation_checkpointing=true"] == make_plan(checkpointed).peak < peak
    smaller = replace(run, rows=Rows(2, 48, 47), accumulate=16)
    assert told["data.batch_size=1 trainer.accumulate_grad_batches=16"] == make_plan(smaller).peak < peak
    assert "trainer=fsdp2 trainer.devices=8" in told
    assert combined is None  # one is enough


def test_changes_are_put_together_where_none_is_enough():
    run = replace(DPO, rows=Rows(32, 48, 47))
    single, _ = advise(run, room=2**40)
    limit = int(min(change.peak for change in single) * 0.9)
    single, combined = advise(run, limit)
    assert combined is not None
    assert combined.peak <= limit
    assert len(combined.overrides.split()) > 2
    text = advice_table(single, combined, limit / 2**30 / 0.9)
    assert "together:" in text
    assert text.count("fits") == 1


def test_a_rollout_is_taken_apart_as_well():
    assert PPO.rollout is not None
    assert PPO.reward_model is not None
    run = replace(
        PPO,
        rows=Rows(1, 24, 16),
        rollout=replace(PPO.rollout, rows=400, at_once=400),
        reward_model=replace(PPO.reward_model, rows=150),
    )
    single, combined = advise(run, make_plan(replace(PPO, rows=Rows(1, 24, 16))).peak * 2)
    assert single[0].overrides == "rollout.generation_batch_size=1"
    assert combined is not None
    assert combined.overrides == "rollout.generation_batch_size=1 reward.batch_size=1"


def test_several_samples_of_a_prompt_cost_one_reading_and_all_of_decoding():
    many = replace(PPO, rollout=replace(PPO.rollout, rows=64, at_once=64, samples=4))
    apart, few = replace(many, rollout=replace(many.rollout, samples=1)), phases(PPO)
    assert phases(many)["rollout: sampling"] == phases(apart)["rollout: sampling"]
    read, read_apart = (phases(run)["rollout: prompts"] for run in (many, apart))
    collected = 48 * (8 * 16 + 16 * 40)  # the 48 other responses
    assert read.activations - collected == few["rollout: prompts"].activations < read_apart.activations - collected
    assert read.kv_cache == phases(many)["rollout: sampling"].kv_cache * 3 // 4
    assert read.logits == phases(many)["rollout: sampling"].logits
    many = replace(many, rows=Rows(2, 24, 16), rollout=replace(many.rollout, rows=400, at_once=400))
    single, _ = advise(many, make_plan(many).peak - 1)
    assert "rollout.generation_batch_size=1" in [change.overrides for change in single]


def test_4_bits_are_not_sharded_and_not_advised_twice():
    run = replace(SFT, policy=replace(LORA, nf4=NF4()))
    words = " ".join(change.overrides for change in advise(run, 2**40)[0])
    assert "fsdp2" not in words
    assert "quantization" not in words


def with_vllm(**changes):
    assert PPO.rollout is not None
    return replace(PPO, rollout=replace(PPO.rollout, **changes))


def test_a_server_takes_nothing_of_the_device():
    elsewhere = with_vllm(engine="server")
    assert roles(elsewhere) == roles(PPO)
    assert phases(elsewhere) == {
        name: phase for name, phase in phases(PPO).items() if name not in ("rollout: prompts", "rollout: sampling")
    }


def test_vllm_takes_its_share_all_the_time_or_while_it_is_awake():
    taken = 2**18
    awake = with_vllm(engine="vllm", share=0.25, device=2**20)
    assert roles(awake)["vLLM"].weights == taken
    assert make_plan(awake).peak == make_plan(with_vllm(engine="server")).peak + taken
    assert "rollout: sampling" not in phases(awake)
    sleeping = with_vllm(engine="vllm", share=0.25, device=2**20, sleeps=True)
    assert "vLLM" not in roles(sleeping)
    assert phases(sleeping)["rollout: vLLM awake"].buffers == taken
    sharded = replace(sleeping, devices=Devices(4, "fsdp2"))
    assert phases(sharded)["rollout: vLLM awake"].buffers == taken + POLICY.weights().total


def test_advice_for_vllm_is_to_let_it_sleep_and_to_give_it_less():
    device = 40 * POLICY.weights().total
    run = with_vllm(engine="vllm", share=0.9, device=device)
    told = {change.overrides: change.peak for change in advise(run, room=2**50)[0]}
    assert told["rollout.sleep=true"] == make_plan(with_vllm(engine="vllm", share=0.9, device=device, sleeps=True)).peak
    assert told["rollout.gpu_memory_utilization=0.05"] < make_plan(run).peak - 0.8 * device
    assert not any("generation_batch_size" in words for words in told)
