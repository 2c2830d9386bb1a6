import torch
from peft import LoraConfig, get_peft_model

from rlhf_lightning.models import ActorCritic, Reference, response_logprobs
from tests.models.test_forward import rows
from tests.tiny import tiny_model


def lora_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return get_peft_model(tiny_model(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))


def test_values_start_at_zero_and_are_zero_off_the_mask() -> None:
    out = ActorCritic(tiny_model())(*rows())
    assert (out.values == 0).all()
    model = ActorCritic(tiny_model())
    torch.nn.init.ones_(model.value_head.linear.bias)
    assert torch.equal(model(*rows()).values, rows()[3])


def test_padding_does_not_change_values() -> None:
    for critic in (None, tiny_model("gpt2").base_model):
        model = ActorCritic(tiny_model(), critic).eval()
        torch.nn.init.normal_(model.value_head.linear.weight)
        with torch.no_grad():
            plain, padded = model(*rows()).values, model(*rows(7)).values
        torch.testing.assert_close(padded[:, :4], plain, atol=1e-5, rtol=0)
        assert plain.abs().sum() > 0


def test_a_value_depends_on_the_tokens_before_it_only() -> None:
    model = ActorCritic(tiny_model()).eval()
    torch.nn.init.normal_(model.value_head.linear.weight)
    prompt_ids, prompt_mask, response_ids, mask = rows()
    before = model(prompt_ids, prompt_mask, response_ids, mask).values
    response_ids[1, 2] = 20
    after = model(prompt_ids, prompt_mask, response_ids, mask).values
    assert torch.equal(before[1, :3], after[1, :3])
    assert not torch.equal(before[1, 3], after[1, 3])


def test_a_trained_adapter_switched_off_is_the_base_exactly() -> None:
    base, policy = tiny_model(), lora_model()
    reference = Reference(policy, tiny_model)
    for name, p in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p)
    with reference.model(like=rows()[0]) as model:
        off = response_logprobs(model, *rows())
    assert torch.equal(off, response_logprobs(base, *rows()))
    assert not torch.equal(off, response_logprobs(policy, *rows()))


def test_the_reference_hash_ignores_training_and_sees_tampering() -> None:
    for policy in (tiny_model(), lora_model()):
        reference = Reference(policy, tiny_model)
        before = reference.fingerprint()
        for p in policy.parameters():
            if p.requires_grad:
                torch.nn.init.normal_(p)
        assert reference.fingerprint() == before
        with reference.model(like=rows()[0]) as model:
            next(p for p in model.parameters() if not p.requires_grad).data += 1
        assert reference.fingerprint() != before


def test_the_reference_of_a_policy_with_a_trained_adapter_is_that_policy_and_not_its_base() -> None:
    def trained() -> torch.nn.Module:
        policy = lora_model()
        for name, p in policy.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p, generator=torch.Generator().manual_seed(p.numel()))
        return policy

    policy = trained()
    reference = Reference(policy, trained)
    before = response_logprobs(policy, *rows())
    with reference.model(like=rows()[0]) as model:
        assert torch.equal(response_logprobs(model, *rows()), before)
    assert not torch.equal(before, response_logprobs(tiny_model(), *rows()))
