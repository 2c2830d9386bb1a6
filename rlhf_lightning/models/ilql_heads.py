"""The heads of implicit language Q-learning: twin action values with their targets, and a state value.

Each head is Linear(H, 2H), ReLU, Linear(2H, outputs) on the state that a token is chosen in, computed in float32. They
start at zero, so that decoding starts as the policy.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from rlhf_lightning.errors import UserError, blaming, named
from rlhf_lightning.functional import chunked_token_logprobs
from rlhf_lightning.hashes import ILQL_HEADS, check_model_files, write_hashes
from rlhf_lightning.models.forward import scatter_tokens, tokens_at_once
from rlhf_lightning.models.loaded_weights import check_finite
from rlhf_lightning.models.precision import Float32Linear, KeepsTypes, without_autocast
from rlhf_lightning.models.saving import check_weights, save_model

HEADS = 2
STRENGTH = "strength"


class ChosenValues(NamedTuple):
    """What the heads say about K chosen tokens, and about the states that they were chosen in."""

    q: Tensor  # [HEADS, K]
    target_q: Tensor  # [HEADS, K], without gradient
    values: Tensor  # [K]
    q_logprobs: Tensor  # [HEADS, K], log softmax over the vocabulary; 0 if not asked for

    def scattered(self, mask: Tensor) -> ChosenValues:
        """Return the same as [B, T], placed where `mask` [B, T] is nonzero, in row-major order; 0 elsewhere."""
        q, target_q, q_logprobs = (
            torch.stack([scatter_tokens(head, mask) for head in heads])
            for heads in (self.q, self.target_q, self.q_logprobs)
        )
        return ChosenValues(q, target_q, scatter_tokens(self.values, mask), q_logprobs)


class ActionLinear(Float32Linear):
    """A linear layer with one output per token, most of which are not needed."""

    def forward(self, input: Tensor, actions: Tensor | None = None, with_logprobs: bool = False) -> Any:
        """Return all outputs [..., V]; or those of the actions [K], and their log softmax [K].

        Args:
            input: [..., W], or [K, W] with actions.
            actions: [K], token ids.
            with_logprobs: compute the log softmax; False: return 0 for it.
        """
        if actions is None:
            return super().forward(input)
        with without_autocast(input.device):
            rows = F.embedding(actions, self.weight.to(input.dtype))
            chosen = (input * rows).sum(dim=-1) + self.bias.to(input.dtype)[actions]
        if not with_logprobs:
            return chosen, torch.zeros_like(chosen)
        at_once = tokens_at_once(self.out_features, input.is_cpu)
        logprobs, _ = chunked_token_logprobs(
            input.unsqueeze(0), super().forward, actions.unsqueeze(0), chunk_size=at_once
        )
        return chosen, logprobs[0]


class Head(nn.Module):
    """Values [..., outputs] of states [..., H].

    Args:
        width: H.
        outputs: numbers per state.
        number: determines the first layer; the same on every process and in every run.
    """

    def __init__(self, width: int, outputs: int, number: int = 0) -> None:
        super().__init__()
        self.features = Float32Linear(width, 2 * width, dtype=torch.float32)
        self.output = ActionLinear(2 * width, outputs, dtype=torch.float32)
        drawn = torch.empty(2 * width, width, dtype=torch.float32, device="cpu")  # the same numbers on every device
        drawn.uniform_(-(width**-0.5), width**-0.5, generator=torch.Generator("cpu").manual_seed(number))
        with torch.no_grad():
            self.features.weight.copy_(drawn)
        nn.init.zeros_(self.features.bias)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, states: Tensor, *actions: Any) -> Any:
        """Return all outputs, or what `ActionLinear` returns for chosen actions."""
        return self.output(self.features(states).relu(), *actions)


class TargetHeads(nn.Module):
    """What decoding reads: the target action values and the state value. It has no trained weights of its own."""

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.q = nn.ModuleList(Head(width, vocabulary) for _ in range(HEADS))
        self.value = Head(width, 1)

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return the action values [HEADS, ..., V] and the state values [...] of states [..., H]."""
        return torch.stack([head(states) for head in self.q]), self.value(states).squeeze(-1)


class ILQLHeads(KeepsTypes):
    """Twin action values, their targets, and a state value.

    Args:
        width: H, of the states.
        vocabulary: V, logits per state.
    """

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.q = nn.ModuleList(Head(width, vocabulary, number) for number in range(HEADS))
        self.value = Head(width, 1, HEADS)
        self.targets = nn.ModuleList(Head(width, vocabulary) for _ in range(HEADS))
        self.targets.load_state_dict(self.q.state_dict())
        self.targets.requires_grad_(False)

    def forward(self, states: Tensor, actions: Tensor, with_logprobs: bool = True) -> ChosenValues:
        """Return what the heads say about K actions in states [K, H]."""
        q, logprobs = zip(*(head(states, actions, with_logprobs) for head in self.q), strict=True)
        with torch.no_grad():
            target_q = [head(states, actions)[0] for head in self.targets]
        return ChosenValues(
            torch.stack(q), torch.stack(target_q), self.value(states).squeeze(-1), torch.stack(logprobs)
        )

    @torch.no_grad()
    def follow(self, rate: float) -> None:
        """Move the targets towards the trained heads: target + rate (head - target)."""
        for target, head in zip(self.targets.parameters(), self.q.parameters(), strict=True):
            target.lerp_(head.to(target.dtype), rate)

    def decoding_weights(self) -> dict[str, Tensor]:
        """Return the whole weights that `TargetHeads` reads, on the CPU; every process must call it."""
        parts = {"q": self.targets, "value": self.value}
        return {f"{part}.{name}": _whole(p) for part, heads in parts.items() for name, p in heads.named_parameters()}


class KeptWeights:
    """The whole weights of a module that is not trained, as state to resume."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def state_dict(self) -> dict[str, Tensor]:
        """Return the whole weights on the CPU; every process must call it."""
        return {name: _whole(parameter) for name, parameter in self.module.named_parameters()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore them, on a sharded module too."""
        for name, parameter in self.module.named_parameters():
            value: Tensor = state[name].to(parameter.device)
            if isinstance(parameter, DTensor):
                value = distribute_tensor(value, parameter.device_mesh, parameter.placements)
            parameter.copy_(value)


def _whole(parameter: Tensor) -> Tensor:
    whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
    return whole.detach().cpu().clone()


def write_heads(heads: ILQLHeads, folder: str | Path, strength: float) -> None:
    """Write what decoding reads beside a model, with the strength to decode with. Call it on every process."""
    weights = heads.decoding_weights()
    if dist.is_initialized() and dist.get_rank() > 0:
        return
    file = Path(folder) / ILQL_HEADS
    file.parent.mkdir(exist_ok=True)
    save_file(weights, file, metadata={STRENGTH: repr(float(strength))})


def export_with_heads(model: Any, heads: ILQLHeads, tokenizer: Any, folder: str | Path, strength: float) -> None:
    """Write a model as `export_model` does, with its heads beside it. Call it on every process."""
    check_weights(heads.decoding_weights().items())
    save_model(model, tokenizer, folder)
    write_heads(heads, folder, strength)
    if not (dist.is_initialized() and dist.get_rank() > 0):
        write_hashes(folder)


def read_heads(folder: str | Path) -> tuple[TargetHeads, float] | None:
    """Return the heads beside a model, and the strength they were exported with; None if there are none.

    Raises:
        UserError: the file cannot be read, or has changed since it was written.
    """
    file = Path(folder) / ILQL_HEADS
    if not file.is_file():
        return None
    check_model_files(folder, weights=True)
    with blaming(f"{named()}: {file} cannot be read", "export the model again"), safe_open(file, "pt") as opened:
        weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # not a mapping
        strength = float(opened.metadata()[STRENGTH])
        vocabulary = len(weights["q.0.output.bias"])
        heads = TargetHeads(weights["q.0.features.weight"].shape[1], vocabulary)
        heads.load_state_dict(weights)
    check_finite(weights.items(), file)
    return heads, strength


def copy_heads(source: str | Path, folder: str | Path) -> None:
    """Copy the heads beside a model, if there are any, to another folder."""
    if (Path(source) / ILQL_HEADS).is_file():
        (Path(folder) / ILQL_HEADS).parent.mkdir(exist_ok=True)
        shutil.copyfile(Path(source) / ILQL_HEADS, Path(folder) / ILQL_HEADS)


def check_fits(heads: TargetHeads, width: int, vocabulary: int, folder: str | Path) -> None:
    """Raise UserError if the heads are not of a model of this width and vocabulary."""
    head: Any = heads.q[0]
    found = (head.features.in_features, head.output.out_features)
    if found != (width, vocabulary):
        raise UserError(
            f"{named()}: {Path(folder) / ILQL_HEADS} is for {found[0]} hidden numbers and {found[1]} tokens, and the "
            f"model has {width} and {vocabulary}: it belongs to another model; export that one again"
        )
