"""ILQL: targets that follow and are resumed, and values that reach every way of decoding."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor

from rlhf_lightning.callbacks import ReproducibleResume
from rlhf_lightning.commands import chat, evaluate
from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.commands.conversation import Conversation
from rlhf_lightning.errors import UserError, named_as
from rlhf_lightning.evaluation import evaluate_policies
from rlhf_lightning.functional import guided_logits
from rlhf_lightning.hashes import ILQL_HEADS, write_hashes
from rlhf_lightning.models import (
    fingerprint,
    guide,
    hidden_states,
    load_causal_lm,
    load_policy,
    predict_tokens,
    response_logprobs,
)
from rlhf_lightning.models.ilql_heads import TargetHeads, read_heads
from rlhf_lightning.rollout import NativeEngine, SamplingSettings
from rlhf_lightning.rollout.policy_weights import check_output_layer
from tests.algorithms.conftest import offline, trainer
from tests.tiny import tiny_model, tiny_tokenizer

BETA = 1.5
IDS = torch.tensor([[3, 9, 4, 7, 5], [8, 3, 5, 1, 0]])


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a policy whose heads are far from 0."""
    return export(tmp_path_factory.mktemp("ilql") / "model", tiny_model)


def export(folder: Path, load: Any) -> Path:
    module, _ = offline("ILQLModule", load, beta=BETA)
    module.configure_model()
    with torch.no_grad():
        for p in module.heads.parameters():
            p.normal_(generator=torch.Generator().manual_seed(p.numel())).mul_(0.3)
    module.export(folder)
    return folder


def by_hand(folder: Path, ids: Tensor, strength: float) -> Tensor:
    """Return the log-probabilities [B, L, V] to decode with, from the policy and the heads on their own."""
    policy = load_causal_lm(folder).eval()
    found = read_heads(folder)
    assert found is not None
    with torch.no_grad():
        states = hidden_states(policy, ids)
        q, v = found[0](states)
        assert q.std() > 0.1
        logits = policy(ids).logits + strength * (torch.minimum(q[0], q[1]) - v.unsqueeze(-1))
    return logits.log_softmax(-1)


# ---- training


class Following(Callback):
    """Recomputes the targets after every optimiser step."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.expected = [p.detach().clone() for p in pl_module.heads.targets.parameters()]
        self.moved = 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if trainer.global_step % 2 == 0 and trainer.global_step > 2 * self.moved:
            self.moved += 1
            for target, head in zip(self.expected, pl_module.heads.q.parameters(), strict=True):
                target += 0.3 * (head.detach() - target)
        for target, found in zip(self.expected, pl_module.heads.targets.parameters(), strict=True):
            torch.testing.assert_close(found, target)


def test_the_targets_follow_the_heads_every_other_optimiser_step(tmp_path: Path) -> None:
    module, data = offline("ILQLModule", target_rate=0.3, target_interval=2)
    following = Following()
    trainer(tmp_path, max_epochs=3, accumulate_grad_batches=2, callbacks=[following]).fit(module, datamodule=data)
    assert following.moved == 4  # 9 steps
    first, second = (torch.cat([p.flatten() for p in head.parameters()]) for head in module.heads.targets)
    assert not torch.allclose(first, second)
    assert not any(p.requires_grad for p in module.heads.targets.parameters())


def test_every_target_weight_is_resumed(tmp_path: Path) -> None:
    def train(stop: int, resume: Path | None = None) -> Any:
        module, data = offline("ILQLModule", target_rate=0.3)
        save = ModelCheckpoint(tmp_path, filename="cut", save_top_k=-1, every_n_train_steps=2)
        callbacks = [save, ReproducibleResume()] if resume is None else [ReproducibleResume()]
        run = trainer(tmp_path, enable_checkpointing=resume is None, callbacks=callbacks, max_steps=stop)
        run.fit(module, datamodule=data, ckpt_path=resume)
        return module

    train(2)
    whole = fingerprint(train(4, tmp_path / "cut.ckpt").heads)
    saved = torch.load(tmp_path / "cut.ckpt", weights_only=True)
    assert len(saved["resumes"]["targets"]) == 8
    for name in saved["resumes"]["targets"]:
        changed = {**saved, "resumes": {"targets": dict(saved["resumes"]["targets"])}}
        changed["resumes"]["targets"][name] = saved["resumes"]["targets"][name] + 0.5
        torch.save(changed, tmp_path / "changed.ckpt")
        assert fingerprint(train(4, tmp_path / "changed.ckpt").heads) != whole, name
    torch.save({**saved, "resumes": {}}, tmp_path / "changed.ckpt")
    with pytest.raises(UserError, match="ckpt: it has no targets, which ILQLModule resumes"):
        train(4, tmp_path / "changed.ckpt")


def test_the_targets_are_what_is_exported(tmp_path: Path) -> None:
    module, data = offline("ILQLModule", target_rate=0.3)
    trainer(tmp_path, max_steps=3).fit(module, datamodule=data)
    module.export(tmp_path / "model")
    found = read_heads(tmp_path / "model")
    assert found is not None
    assert fingerprint(found[0].q) == fingerprint(module.heads.targets) != fingerprint(module.heads.q)
    assert fingerprint(found[0].value) == fingerprint(module.heads.value)
    assert found[1] == 8.0


def test_a_weight_without_effect_is_refused() -> None:
    with pytest.raises(UserError, match=r"algorithm\.awac_beta: it has no effect with algorithm.awac_weight=0"):
        offline("ILQLModule", awac_beta=1.0, awac_weight=0.0)


def test_decoding_starts_as_the_policy(tmp_path: Path) -> None:
    module, _ = offline("ILQLModule")
    module.configure_model()
    module.export(tmp_path)
    with torch.no_grad():
        guided, plain = (load(tmp_path)(IDS).logits.log_softmax(-1) for load in (load_policy, load_causal_lm))
    assert torch.allclose(guided, plain, atol=1e-5)


# ---- decoding


@pytest.mark.parametrize("family", ["llama", "gemma2"])  # gemma2 caps its logits
def test_logits_and_log_probabilities_include_the_values(family: str, tmp_path: Path) -> None:
    folder = export(tmp_path, partial(tiny_model, family))
    guided, expected = load_policy(folder).eval(), by_hand(folder, IDS, BETA)
    with torch.no_grad():
        assert torch.allclose(guided(IDS).logits.log_softmax(-1), expected, atol=1e-5)
        assert torch.allclose(guided(IDS, logits_to_keep=1).logits.log_softmax(-1), expected[:, -1:], atol=1e-5)
        flags = torch.tensor([[0, 1, 1, 1, 1]] * 2)
        found = predict_tokens(guided, IDS, flags).logprobs.view(2, 4)
    assert torch.allclose(found, expected[:, :-1].gather(2, IDS[:, 1:, None])[..., 0], atol=1e-5)
    with torch.no_grad():
        alone = load_policy(folder, strength=0.0)(IDS).logits
        assert torch.equal(alone, load_causal_lm(folder)(IDS).logits)
        stronger = load_policy(folder, strength=4.0)(IDS).logits.log_softmax(-1)
    assert torch.allclose(stronger, by_hand(folder, IDS, 4.0), atol=1e-5)


def test_the_native_engine_samples_from_the_guided_policy(exported: Path) -> None:
    guided = load_policy(exported).eval()
    engine = NativeEngine(0, [1])
    engine.sync(guided)
    prompts = [[3, 9, 4]] * 2000
    out = engine.generate(prompts, SamplingSettings(max_new_tokens=2), torch.Generator().manual_seed(0))
    expected = by_hand(exported, torch.tensor([prompts[0]]), BETA)[0, -1].exp()
    frequencies = torch.bincount(out.tokens[:, 0], minlength=len(expected)) / len(prompts)
    assert float((frequencies - expected).abs().sum()) < 0.15  # 0.7 from the policy's own
    ids, valid = torch.tensor(prompts), torch.ones(len(prompts), 3, dtype=torch.long)
    again = response_logprobs(guided, ids, valid, out.tokens, out.mask)
    assert torch.allclose(out.logprobs, again, atol=1e-5)


def test_values_come_before_top_k_and_temperature(exported: Path) -> None:
    prompt = torch.tensor([[3, 9, 4]])
    best = int(by_hand(exported, prompt, BETA)[0, -1].argmax())
    assert best != int(by_hand(exported, prompt, 0.0)[0, -1].argmax())
    engine = NativeEngine(0, [1])
    engine.sync(load_policy(exported).eval())
    for settings in (SamplingSettings(1, top_k=1), SamplingSettings(1, temperature=0.0)):
        out = engine.generate([[3, 9, 4]], settings, torch.Generator().manual_seed(0))
        assert out.tokens.item() == best


def test_a_conversation_decodes_with_the_values(exported: Path) -> None:
    words = tiny_tokenizer()
    settings: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 4}
    answers = {}
    for strength in (None, 0.0):
        conversation = Conversation(str(exported), **settings, ilql_beta=strength)
        answers[strength] = conversation.answer("a g b")
    ids = words("a g b", return_tensors="pt", add_special_tokens=False).input_ids
    for strength, answer in answers.items():
        row = ids
        for _ in range(4):
            token = by_hand(exported, row, BETA if strength is None else strength)[0, -1].argmax()
            row = torch.cat([row, token.view(1, 1)], dim=1)
            if int(token) == 1:
                break
        assert answer == words.decode(row[0, ids.shape[1] :]).removesuffix("<eos>").strip()
    assert answers[None] != answers[0.0]


def test_an_evaluation_samples_and_measures_the_guided_policy(exported: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a g b"}\n{"prompt": "c"}\n')
    policies = {"base": exported, "ilql": exported}
    kls = {}
    for strength in (0.0, None):
        settings: dict[str, Any] = {"max_new_tokens": 3, "samples_per_prompt": 16, "ilql_beta": strength}
        found = evaluate_policies(policies, prompts, "base", exported, **settings)
        kls[strength] = found.metrics["ilql"]["kl"]
    assert kls == {0.0: 0.0, None: 0.0}  # policy and reference decode alike


def test_vllm_refuses_a_guided_policy(exported: Path) -> None:
    with pytest.raises(UserError, match=r"rollout\.engine: vLLM cannot add the values of ILQL's heads"):
        check_output_layer(load_policy(exported))


# ---- the folder


def test_plain_transformers_loads_the_policy(exported: Path) -> None:
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(exported)
    assert fingerprint(plain) == fingerprint(load_causal_lm(exported))


def test_changed_heads_and_those_of_another_model_are_refused(tmp_path: Path) -> None:
    folder = export(tmp_path / "one", tiny_model)
    file = folder / ILQL_HEADS
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with named_as("model"), pytest.raises(UserError, match=r"model: .*heads.safetensors has changed"):
        load_policy(folder)
    other = export(tmp_path / "other", partial(tiny_model, hidden=16))
    file.write_bytes((other / ILQL_HEADS).read_bytes())
    write_hashes(folder)
    with pytest.raises(UserError, match="is for 16 hidden numbers and 29 tokens, and the model has 32 and 29"):
        load_policy(folder)


def test_a_strength_without_heads_is_refused(exported: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    tiny_model().save_pretrained(plain)
    tiny_tokenizer().save_pretrained(plain)
    message = "ilql_beta: found 2, but no model here has ILQL's heads"
    with pytest.raises(UserError, match=message):
        chat.check(compose_config("chat", [f"model={plain}", "ilql_beta=2"]))
    chat.check(compose_config("chat", [f"model={plain}", f"compare_with={exported}", "ilql_beta=2"]))
    given = ["prompts=org/prompts", "baseline=sft", "ilql_beta=2"]
    with pytest.raises(UserError, match=message):
        evaluate.check(compose_config("evaluate", [f"policies={{sft: {plain}}}", *given]))
    evaluate.check(compose_config("evaluate", [f"policies={{sft: {exported}}}", *given]))


def test_the_heads_guide_any_model_in_memory() -> None:
    model = tiny_model().eval()
    found = model(IDS).logits
    heads = TargetHeads(32, 29)
    with torch.no_grad():
        heads.value.output.bias.fill_(1.0)
        heads.q[0].output.bias[4] = 2.0
        heads.q[1].output.bias[4] = 3.0
    guide(model, heads, 0.5)
    least = heads.q[0].output.bias.expand(2, 2, 5, 29)
    expected = guided_logits(found, least, torch.ones(2, 5), 0.5)
    assert torch.allclose(model(IDS).logits, expected, atol=1e-5)
