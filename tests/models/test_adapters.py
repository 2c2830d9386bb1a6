from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from torch import nn
from transformers.pytorch_utils import Conv1D

from rlhf_lightning.errors import UserError
from rlhf_lightning.kernels import fast_products, machine
from rlhf_lightning.models import (
    NF4,
    LoRA,
    Reference,
    SharedRewardModel,
    disable_dropout,
    fingerprint,
    load_causal_lm,
    load_config,
    load_reward_model,
    load_tokenizer,
    response_logprobs,
    save_model,
)
from rlhf_lightning.models.adapters import adapter_active, save_network
from rlhf_lightning.rewards import ModelReward, make_reward
from tests.models.test_forward import rows
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(params=["llama", "gpt2"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    tiny_model(request.param, hidden=64).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def trained(path: Path, seed: int = 0, **kwargs: object) -> torch.nn.Module:
    """Load a model as if its adapter had been trained."""
    model = load_causal_lm(path, **{"adapter": LoRA(rank=4), **kwargs})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.1, generator=generator)
    return model


def test_only_the_adapter_is_trained_and_it_starts_as_the_base(base: Path) -> None:
    model = load_causal_lm(base, adapter=LoRA(rank=4))
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable and all("lora_" in name for name in trainable)
    assert not any("lm_head" in name for name in trainable)
    assert torch.equal(
        response_logprobs(model, *rows()), response_logprobs(load_causal_lm(base, dropout=False), *rows())
    )


@pytest.mark.parametrize(
    "settings", [LoRA(rank=4), LoRA(rank=4, use_rslora=True), LoRA(rank=4, use_dora=True, init="gaussian")]
)
def test_a_saved_adapter_goes_on_merges_and_loads_with_plain_peft(base: Path, tmp_path: Path, settings: LoRA) -> None:
    model = trained(base, adapter=settings).eval()
    save_network(model, tmp_path / "run" / "model")
    expected = response_logprobs(model, *rows())
    further = load_causal_lm(tmp_path / "run", adapter=settings).eval()
    assert torch.equal(response_logprobs(further, *rows()), expected)
    merged = load_causal_lm(tmp_path / "run").eval()
    assert not any("lora" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(response_logprobs(merged, *rows()), expected, atol=1e-4, rtol=0)
    plain = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "run" / "model").eval()
    torch.testing.assert_close(response_logprobs(plain, *rows()), expected, atol=1e-6, rtol=0)
    assert load_config(tmp_path / "run").vocab_size == load_config(base).vocab_size
    assert load_tokenizer(tmp_path / "run").eos_token_id == 1  # from the base


def test_what_cannot_work_is_refused_with_its_reason(base: Path, tmp_path: Path) -> None:
    for init in ("pissa", "olora", "loftq", "corda"):
        with pytest.raises(UserError, match=r"model\.adapter\.init.*reference"):
            LoRA(init=init)
    with pytest.raises(UserError, match=r"model/adapter=lora"):
        load_causal_lm(base, quantization=NF4())
    save_network(trained(base), tmp_path / "sft")
    with pytest.raises(UserError, match=r"model\.adapter\.rank: found 8.*has 4"):
        load_causal_lm(tmp_path / "sft", adapter=LoRA(rank=8))


def test_the_reference_of_a_trained_start_is_a_frozen_copy_of_its_adapter(base: Path) -> None:
    policy = trained(base).eval()
    start = response_logprobs(policy, *rows())
    size = sum(p.numel() for p in policy.parameters())
    reference = Reference(policy, lambda: pytest.fail("no second network"))
    before = reference.fingerprint()
    with reference.model(like=rows()[0]) as model:
        assert torch.equal(response_logprobs(model, *rows()), start)
    lora = sum(p.numel() for name, p in policy.named_parameters() if ".reference." in name)
    assert sum(p.numel() for p in policy.parameters()) == size + lora
    optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=1.0)
    response_logprobs(policy, *rows()).sum().backward()
    optimizer.step()
    moved = response_logprobs(policy, *rows())
    assert not torch.equal(moved, start)
    with reference.model(like=rows()[0]) as model:
        assert torch.equal(response_logprobs(model, *rows()), start)
    assert torch.equal(response_logprobs(policy, *rows()), moved)
    assert reference.fingerprint() == before
    with torch.no_grad():
        next(p for name, p in policy.named_parameters() if ".reference." in name).add_(1)
    assert reference.fingerprint() != before


def test_the_copy_of_an_adapter_computes_as_the_adapter_to_the_bit(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a processor where a loaded network's layers get kernels: the copy comes later."""
    monkeypatch.setattr(machine, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(fast_products, "SMALLEST", 0)
    policy = trained(base)
    disable_dropout(policy)
    reference = Reference(policy, lambda: pytest.fail("no second network"))
    kinds: dict[str, set[type]] = {"default": set(), "reference": set()}
    for name, module in policy.named_modules():
        if name.split(".")[-1] in kinds and isinstance(module, nn.Linear):
            kinds[name.split(".")[-1]].add(type(module))
    assert kinds["reference"] == kinds["default"] == {fast_products.FastLinear}
    with torch.no_grad():
        start = response_logprobs(policy, *rows())
        with reference.model(like=rows()[0]) as model:
            assert torch.equal(response_logprobs(model, *rows()), start)


def test_an_adapter_beside_the_trained_one_has_no_dropout(base: Path, tmp_path: Path) -> None:
    """The network is in training mode when PPO scores and DPO compares; its dropout was switched off earlier."""
    reward = load_reward_model(base, adapter=LoRA(rank=4, dropout=0.5))
    with torch.no_grad():
        for name, p in reward.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                p.normal_(std=0.1)
    save_model(reward, tiny_tokenizer(), tmp_path / "reward")
    policy = trained(base, adapter=LoRA(rank=4, dropout=0.5))
    disable_dropout(policy)
    shared = SharedRewardModel(policy, str(tmp_path / "reward"))
    reference = Reference(policy, lambda: pytest.fail("no second network"))
    ids, valid = rows()[2], rows()[3].long()
    with torch.no_grad():
        alone = load_reward_model(tmp_path / "reward").eval()(ids, valid)
        torch.testing.assert_close(shared(ids, valid), alone, atol=1e-5, rtol=0)
        start = response_logprobs(policy.train(), *rows())
        with reference.model(like=rows()[0]) as model:
            assert torch.equal(response_logprobs(model, *rows()), start)


def test_switching_adapters_keeps_what_is_trainable(base: Path) -> None:
    policy = trained(base)
    Reference(policy, lambda: pytest.fail("no second network"))
    flags = {name: p.requires_grad for name, p in policy.named_parameters()}
    with adapter_active(policy, "reference"):
        pass
    assert {name: p.requires_grad for name, p in policy.named_parameters()} == flags
    assert any(flags.values()) and not any(flag for name, flag in flags.items() if ".reference." in name)


def test_a_reward_model_is_an_adapter_and_a_head_on_the_policys_base(base: Path, tmp_path: Path) -> None:
    reward = load_reward_model(base, adapter=LoRA(rank=4))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in reward.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                p.normal_(std=0.1, generator=generator)
    save_model(reward, tiny_tokenizer(), tmp_path / "reward")
    ids, valid = rows()[2], rows()[3].long()
    alone = load_reward_model(tmp_path / "reward").eval()
    policy = trained(base).eval()
    before, answers = fingerprint(policy), response_logprobs(policy, *rows())
    shared = SharedRewardModel(policy, str(tmp_path / "reward"))
    with torch.no_grad():
        assert torch.allclose(reward.eval()(ids, valid), alone(ids, valid), atol=1e-5)
    torch.testing.assert_close(shared(ids, valid), alone(ids, valid).detach(), atol=1e-5, rtol=0)
    assert shared(ids, valid).std() > 0.01
    assert torch.equal(response_logprobs(policy, *rows()), answers)
    assert fingerprint(policy) != before  # the adapter is separate


def test_a_frozen_reward_adapter_has_the_bases_type_and_the_trained_one_float32(base: Path, tmp_path: Path) -> None:
    save_model(load_reward_model(base, adapter=LoRA(rank=4)), tiny_tokenizer(), tmp_path / "reward")
    policy = load_causal_lm(base, dtype="bfloat16", adapter=LoRA(rank=4))
    SharedRewardModel(policy, str(tmp_path / "reward"))
    types = {name: p.dtype for name, p in policy.named_parameters() if "lora_" in name}
    assert {dtype for name, dtype in types.items() if ".reward." in name} == {torch.bfloat16}
    assert {dtype for name, dtype in types.items() if ".default." in name} == {torch.float32}


def test_nf4_holds_a_frozen_base_in_an_eighth_of_float32(base: Path) -> None:
    full, small = (
        load_causal_lm(base),
        load_causal_lm(base, adapter=LoRA(rank=4), quantization=NF4(compute_dtype="float32")),
    )
    quantised = [p for p in small.parameters() if p.dtype == torch.uint8]
    assert quantised
    layers = [m for m in full.base_model.modules() if isinstance(m, nn.Linear | Conv1D)]
    assert sum(p.numel() for p in quantised) * 2 == sum(m.weight.numel() for m in layers)
    response_logprobs(small, *rows()).sum().backward()
    assert all(p.grad is not None for p in small.parameters() if p.requires_grad)
    exact, close = response_logprobs(full.eval(), *rows()), response_logprobs(small.eval(), *rows())
    assert 0 < (exact - close).abs().mean() < 1.0


def test_nf4_layers_compute_the_same_and_pass_gradients_on_after_an_evaluation(base: Path) -> None:
    """bitsandbytes repacks them on CPUs with bfloat16 instructions, where this fails without our switch."""
    model = load_causal_lm(base, adapter=LoRA(rank=4), quantization=NF4(compute_dtype="float32"), dropout=False)
    layers = [m for m in model.modules() if hasattr(m, "support_avx512bf16_for_cpu")]
    assert layers and not any(m.support_avx512bf16_for_cpu for m in layers)
    results = []
    for _ in range(2):
        model.train()
        answers = response_logprobs(model, *rows())
        answers.sum().backward()
        results.append([answers.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
        model.zero_grad()
        with torch.no_grad():
            response_logprobs(model.eval(), *rows())
    assert len(results[0]) == len(results[1])
    assert all(torch.equal(before, after) for before, after in zip(*results, strict=True))


def test_a_reward_models_score_head_stays_in_full_precision(base: Path) -> None:
    reward = load_reward_model(base, adapter=LoRA(rank=4), quantization=NF4())
    heads = {name: p for name, p in reward.named_parameters() if "score" in name}
    assert heads and all(p.dtype == torch.float32 for p in heads.values())
    assert any(p.requires_grad for p in heads.values())


def test_activation_checkpointing_changes_no_gradient(base: Path) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = load_causal_lm(base, dropout=False, activation_checkpointing=checkpointing)
        response_logprobs(model, *rows()).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert model.is_activation_checkpointing
    torch.testing.assert_close(gradients[0], gradients[1])


def test_training_starts_with_dropout_on(tmp_path: Path) -> None:
    tiny_model("gpt2", dropout=0.5).save_pretrained(tmp_path)
    model = load_causal_lm(tmp_path)
    assert not torch.equal(response_logprobs(model, *rows()), response_logprobs(model, *rows()))


def judge(base: Path, folder: Path, seed: int, **kwargs: object) -> Path:
    """Make the folder of a reward model that is an adapter, as if it had been trained."""
    reward = load_reward_model(base, adapter=LoRA(rank=4), **kwargs)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in reward.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                p.normal_(std=0.1, generator=generator)
    save_model(reward, tiny_tokenizer(), folder)
    return folder


def test_two_reward_models_lie_beside_one_policy_and_score_as_they_do_alone(base: Path, tmp_path: Path) -> None:
    folders = {name: judge(base, tmp_path / name, seed) for seed, name in enumerate(("helpful", "harmless"))}
    parts = {name: {"model": str(folder)} for name, folder in folders.items()}
    texts = (["a b", "c"], ["d e", "f g h"])
    expected = {name: ModelReward(folder)(*texts) for name, folder in folders.items()}
    assert expected["helpful"] != pytest.approx(expected["harmless"], abs=1e-2)
    policy = trained(base).eval()
    answers = response_logprobs(policy, *rows())
    reward = make_reward(components=parts)
    reference = Reference(policy, lambda: pytest.fail("no second network"))
    before = reference.fingerprint()
    reward.share_backbone(policy)
    assert reference.fingerprint() == before  # only the reference's, so that a resume finds it whatever the reward
    reward(*texts)
    for name in folders:
        assert isinstance(reward.rewards[name].model, SharedRewardModel)
        assert reward.parts[name] == pytest.approx(expected[name], abs=1e-5)
    assert torch.equal(response_logprobs(policy, *rows()), answers)


@pytest.mark.parametrize("in_4_bits", ["the policy", "the reward model", "both"])
def test_a_reward_model_scores_on_weights_as_it_was_trained_on(in_4_bits: str, base: Path, tmp_path: Path) -> None:
    bits = {"quantization": NF4(compute_dtype="float32")}
    of_policy, of_reward = (bits if in_4_bits in (name, "both") else {} for name in ("the policy", "the reward model"))
    folder = judge(base, tmp_path / "judge", 0, **of_reward)
    texts = (["a b", "c"], ["d e", "f g h"])
    trained_on = load_reward_model(folder, adapter=LoRA(rank=4), **of_reward).eval()
    reward = ModelReward(folder)
    reward.share_backbone(trained(base, **of_policy).eval())
    assert isinstance(reward.model, SharedRewardModel) == (in_4_bits == "both")
    ids = torch.tensor([[*tiny_tokenizer()("a b d e").input_ids, 1]])
    with torch.no_grad():
        assert reward(*texts)[0] == pytest.approx(float(trained_on(ids, torch.ones_like(ids))), abs=1e-4)


def test_a_rank_that_no_layer_can_have_is_refused(base: Path) -> None:
    with pytest.raises(UserError, match=r"^model\.adapter\.rank: found 4096; .* must be at most \d+$") as raised:
        load_causal_lm(base, adapter=LoRA(rank=4096))
    largest = int(str(raised.value).rpartition(" ")[2])
    load_causal_lm(base, adapter=LoRA(rank=largest))
    with pytest.raises(UserError, match=r"^model\.adapter\.rank: "):
        load_causal_lm(base, adapter=LoRA(rank=largest + 1))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], r"target_modules: found \[\]; must be a text or a list"),
        (["{first}", "zz_proj"], "target_modules: found zz_proj, which no layer of the model is called"),
        (["zz_proj"], "no layer of the model has such a name"),
        ([""], "target_modules: found"),
        ("zz", "no layer of the model has such a name"),
        (".*mlp", "it selects a .*MLP, which is not a linear layer"),
    ],
)
def test_names_that_select_no_linear_layer_are_refused_each(base: Path, names: str | list[str], message: str) -> None:
    first = "c_attn" if "GPT2" in (base / "config.json").read_text() else "q_proj"
    chosen = [name.format(first=first) for name in names] if isinstance(names, list) else names
    with pytest.raises(UserError, match=rf"^model\.adapter\..*{message}"):
        load_causal_lm(base, adapter=LoRA(rank=4, target_modules=chosen))
