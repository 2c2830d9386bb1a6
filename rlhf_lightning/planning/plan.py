"""The bytes a run needs on a device: permanent ones by role, and temporary ones by phase."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from rlhf_lightning.kernels.machine import onednn_is_faster
from rlhf_lightning.planning.networks import Network, Weights, ilql_head_weights
from rlhf_lightning.planning.passes import Rows, forward_pass, generation, training_step
from rlhf_lightning.planning.run import RewardModel, Run

# DeepSpeed's buckets, in elements: Lightning's defaults for gathering and reducing.
DEEPSPEED_BUCKETS = 2 * 200_000_000


@dataclass(frozen=True)
class Role:
    """A network's share: bytes that stay on the device for the whole run."""

    name: str
    weights: int
    gradients: int = 0
    optimizer: int = 0
    note: str = ""


@dataclass(frozen=True)
class Phase:
    """What a phase of the run holds besides weights and optimiser state."""

    name: str
    gradients: int = 0
    activations: int = 0
    kv_cache: int = 0
    logits: int = 0
    buffers: int = 0  # gathered weights, communication, the optimiser's temporary results
    before_training: bool = False  # there is no optimiser state yet

    @property
    def total(self) -> int:
        return self.gradients + self.activations + self.kv_cache + self.logits + self.buffers


@dataclass(frozen=True)
class Plan:
    """Bytes per device."""

    run: Run
    roles: tuple[Role, ...]
    phases: tuple[Phase, ...]

    def resident(self, phase: Phase) -> int:
        """Return the bytes of weights, and of optimiser state once training has begun."""
        return sum(role.weights + (0 if phase.before_training else role.optimizer) for role in self.roles)

    def total(self, phase: Phase) -> int:
        """Return the bytes alive in a phase."""
        return self.resident(phase) + phase.total

    @property
    def largest(self) -> Phase:
        """Return the phase with the peak."""
        return max(self.phases, key=self.total)

    @property
    def peak(self) -> int:
        """Return the bytes at the run's peak."""
        return self.total(self.largest)


def make_plan(run: Run) -> Plan:
    """Return the memory plan of a run.

    Gradients are alive from a backward pass to the end of the optimiser step, and in the forward passes in between if
    batches are accumulated. DDP's buckets always are, and DeepSpeed's own gradients are counted as if they were.
    """
    roles = tuple(_roles(run))
    gradients = sum(role.gradients for role in roles)
    return Plan(run, roles, tuple(_phases(run, gradients)))


def _trained_weights(run: Run) -> Iterator[tuple[str, Weights]]:
    """Yield the name and the weights of every network and head that is trained."""
    yield _SCORERS.get(run.roles[0], "policy"), run.policy.weights()
    for role, (critic, of_critic) in _CRITICS.items():
        if role in run.roles:
            yield from ((critic, network.weights()) for network in _critics(run)[:1])
            head = (run.policy.text.hidden_size + 1) * 4
            yield of_critic, Weights(0, head, head, 0)
    if "q_heads" in run.roles:
        yield "Q and V heads", ilql_head_weights(run.policy.text.hidden_size, run.policy.vocab_size)


def _roles(run: Run) -> Iterator[Role]:
    weights = run.policy.weights()
    trained = list(_trained_weights(run))
    yield from (_trained(run, name, each) for name, each in trained)
    if run.averaged:
        size, element = sum(each.trainable for _, each in trained), 4 if run.policy.lora else run.policy.element
        yield Role("average", size // element * 4, note="of what is trained, in float32")
    if "lagging" in run.roles:
        yield Role("lagging policy", weights.trainable, note="a copy of what is trained")
    if run.teacher is not None:
        yield Role("teacher", run.teacher.weights().total, note="frozen, on every device")
    if "reference" in run.roles:
        yield _reference(run, weights)
    if run.rollout is not None and run.rollout.engine == "vllm" and not run.rollout.sleeps:
        yield Role("vLLM", run.rollout.taken, note="rollout.gpu_memory_utilization of the device")
    for name, scored in _scorers(run):
        networks = (scored.network, *scored.beside)
        what = name if len(networks) == 1 else f"{name}s ({len(networks)})"
        if scored.shared:
            size = sum(network.frozen_adapter_bytes() for network in networks)
            yield Role(what, size, note=f"{'an adapter' if len(networks) == 1 else 'adapters'} on the policy's base")
        else:
            size = sum(network.weights().total for network in networks)
            yield Role(what, size, note="frozen, on every device")


# Role -> the names of its network, and of a critic's head.
_SCORERS = {"reward": "reward model", "cost": "cost model"}
_CRITICS = {"critic": ("critic", "value head"), "cost_critic": ("cost critic", "value head of the cost")}


def _scorers(run: Run) -> list[tuple[str, RewardModel]]:
    """Return the networks that score samples, by name."""
    given = (("reward model", run.reward_model), ("cost model", run.cost_model))
    return [(name, scored) for name, scored in given if scored is not None]


def _trained(run: Run, name: str, weights: Weights) -> Role:
    sharding, world, size = run.devices.sharding, run.devices.processes, weights.trainable
    weights_in, gradients_in, optimizer_in = {
        "none": (1, 1, 1),
        "ddp": (1, 1, 1),
        "zero1": (1, 1, world),
        "zero2": (1, world, world),
        "zero3": (world, world, world),
        "fsdp2": (world, world, world),
    }[sharding]
    state = size * run.optimizer.copies
    if sharding.startswith("zero") and run.policy.element < 4:
        state = size // run.policy.element * 4 * (run.optimizer.copies + 1)  # DeepSpeed keeps float32 master weights
    gradients = size // gradients_in * run.devices.gradient_copies
    return Role(name, weights.total // weights_in, gradients, state // optimizer_in)


def _reference(run: Run, weights: Weights) -> Role:
    if run.keeps_reference is False and run.policy.lora is None:
        return Role("reference", 0, note="a frozen copy before training, then let go")
    if _has_reference_copy(run):
        return Role("reference", _as_sent(run, weights.total), note="a frozen copy, on every device")
    if run.starts_from_adapter:
        return Role("reference", run.policy.adapter_bytes(), note="a frozen copy of the adapter")
    return Role("reference", 0, note="the policy with its adapter off")


def _has_reference_copy(run: Run) -> bool:
    return run.policy.lora is None or run.separate


def _critics(run: Run) -> tuple[Network, ...]:
    """Return the critics that are networks: each the backbone of a sequence classifier, with a score per state."""
    return tuple(replace(run.policy, task="SEQ_CLS") for role in _CRITICS if run.separate and role in run.roles)


def _phases(run: Run, gradients: int) -> Iterator[Phase]:
    between = _between_steps(run, gradients)
    forward = gradients if run.accumulate > 1 else between
    if run.rollout is not None:
        yield from _rollout_phases(run, between)
    elif "reference" in run.roles:
        yield _reference_phase(run, forward)
    if run.teacher is not None:
        alive = forward_pass(run.teacher, run.rows, run.loss, run.autocast, frozen=True)
        yield Phase("teacher", forward, alive.others, logits=alive.logits)
    yield from _update_phases(run, gradients, forward)


def _between_steps(run: Run, gradients: int) -> int:
    """Return the bytes of gradients that stay alive after an optimiser step."""
    if run.devices.sharding in ("none", "fsdp2"):
        return 0
    return gradients // run.devices.gradient_copies  # the buckets, one of DDP's two copies


def _reference_phase(run: Run, gradients: int) -> Phase:
    if not _has_reference_copy(run):
        alive = forward_pass(run.policy, run.rows, run.loss, run.autocast)
        return Phase("reference", gradients, alive.others, logits=alive.logits, buffers=_gathered_layers(run))
    alive = forward_pass(run.policy, run.rows, run.loss, run.autocast, frozen=True)
    if run.keeps_reference is not False:
        return Phase("reference", gradients, alive.others, logits=alive.logits)
    weights = _as_sent(run, run.policy.weights().total)
    return Phase("reference", 0, alive.others, logits=alive.logits, buffers=weights, before_training=True)


def _update_phases(run: Run, gradients: int, forward: int) -> Iterator[Phase]:
    step = training_step(run.policy, run.rows, run.loss, run.autocast, _critics(run), run.extra)
    buffers = _gathered_layers(run) + _deepspeed_buckets(run)
    yield Phase("forward", forward, step.forward.others, logits=step.forward.logits, buffers=buffers)
    buffers = _gathered_layers(run, backward=True) + _deepspeed_buckets(run)
    weights = run.policy.weights()
    first = gradients if run.accumulate > 1 else _share(run, weights.output_layer) * run.devices.gradient_copies
    # At its start everything that was saved is alive, at its end all gradients are, and one layer is being processed.
    start = Phase("backward", first, step.backward.others, logits=step.backward.logits, buffers=buffers)
    one_layer = max(0, step.backward.others - step.kept)
    end = Phase("backward", gradients, one_layer, buffers=buffers)
    yield max(start, end, key=lambda phase: phase.total)
    trainable = weights.largest_trainable if run.devices.cpu else weights.trainable
    # Adam's denominator: of one parameter at a time, or of all at once if the step is fused over a list.
    yield Phase("optimiser step", gradients, buffers=_share(run, trainable) if run.optimizer.copies > 1 else 0)


def _rollout_phases(run: Run, gradients: int) -> Iterator[Phase]:
    rollout = run.rollout
    assert rollout is not None
    gathered = _gathered_weights(run)
    # Two ids and a mask per prompt token; an id, a mask, two masks of the passes and six numbers per response token.
    masks = -(-run.policy.vocab_size // 8) if "lagging" in run.roles else 0
    collected = rollout.rows * (rollout.prompt * 16 + rollout.response * (40 + masks))
    if rollout.engine == "native":
        sampled = generation(
            run.policy, rollout.at_once, rollout.prompt, rollout.response, run.autocast, rollout.samples
        )
        buffers = gathered + _packed_weights(run)
        read = sampled.prompts.others + collected
        yield Phase("rollout: prompts", gradients, read, sampled.slots, sampled.prompts.logits, buffers)
        stepped = sampled.step.others + collected
        caches = 2 if "lagging" in run.roles else 1
        yield Phase("rollout: sampling", gradients, stepped, caches * sampled.cache, sampled.step.logits, buffers)
    elif rollout.engine == "vllm" and rollout.sleeps:
        yield Phase("rollout: vLLM awake", gradients, collected, buffers=gathered + rollout.taken)
    alive = forward_pass(run.policy, run.rows, run.loss, run.autocast)
    name = "rollout: log-probabilities"
    yield Phase(name, gradients, alive.others + collected, logits=alive.logits, buffers=gathered)
    for name, scored in _scorers(run):
        length = rollout.prompt + rollout.response
        alive = forward_pass(replace(scored.network, task="SEQ_CLS"), Rows(scored.rows, length, 1), run.loss)
        buffers = gathered if scored.shared else 0
        yield Phase(f"rollout: {name}", gradients, alive.others + collected, buffers=buffers)


def _share(run: Run, size: int) -> int:
    """Return a device's share of gradients of this size."""
    return size // run.devices.processes if run.devices.sharding in ("zero2", "zero3", "fsdp2") else size


def _gathered_layers(run: Run, backward: bool = False) -> int:
    """Return the bytes of gathered weights: the layer being computed, the next one, and embeddings and head.

    In the backward pass the gradients of one layer, and of embeddings and head, are whole before they are sharded.
    FSDP2 sends weights in the dtype of mixed precision's products.
    """
    if run.devices.sharding not in ("zero3", "fsdp2"):
        return 0
    gathered = 0
    for network in (run.policy, *_critics(run)):
        whole, layer = network.weights(), network.layer()
        gathered += _as_sent(run, whole.total - (network.layers - 2) * layer.total)
        gathered += (whole.trainable - (network.layers - 1) * layer.trainable) if backward else 0
    return gathered


def _gathered_weights(run: Run) -> int:
    """Return the bytes of gathered weights in sampling, which needs the whole policy on every device."""
    if run.devices.sharding not in ("zero3", "fsdp2"):
        return 0
    return _as_sent(run, run.policy.weights().total)


def _as_sent(run: Run, weights: int) -> int:
    """Return the bytes of sharded weights once gathered."""
    halves = run.devices.sharding == "fsdp2" and run.autocast == torch.bfloat16 and run.policy.element == 4
    return weights // 2 if halves else weights


def _packed_weights(run: Run) -> int:
    """Return the bytes of the copy of the weights that decoding reads on some CPUs and under autocast.

    See `kernels.fast_products.packed_weights`. In `generation`, autocast caches its copies of trained weights itself.
    """
    if run.autocast is not None and run.policy.lora is not None and run.policy.nf4 is None:
        return run.policy.weights().frozen * run.autocast.itemsize // 4 if run.policy.element == 4 else 0
    plain = run.policy.element == 4 and run.policy.nf4 is None and run.autocast is None
    asked = run.policy.kernels
    fast = onednn_is_faster() if asked == "auto" else "fast_products" in asked
    return run.policy.weights().total if run.devices.cpu and plain and fast else 0


def _deepspeed_buckets(run: Run) -> int:
    if not run.devices.sharding.startswith("zero"):
        return 0
    trainable = run.policy.weights().trainable // run.policy.element
    return min(DEEPSPEED_BUCKETS, 2 * trainable) * run.policy.element
