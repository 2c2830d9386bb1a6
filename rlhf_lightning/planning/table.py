"""A plan as lines of text, in GiB."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_lightning.planning.advice import Change
from rlhf_lightning.planning.plan import Phase, Plan

GIB = 2**30
RESIDENT = "resident: weights and, once training has begun, optimiser states: they stay in memory"
RESERVE = 0.1  # share of the device for the driver, cuBLAS and allocator fragmentation


def room(device_gb: float) -> int:
    """Return the bytes of a device that a run may use."""
    return int(device_gb * GIB * (1 - RESERVE))


def plan_table(plan: Plan, device_gb: float) -> str:
    """Return what is resident by role, what each phase adds, the peak, and whether it fits."""
    lines = [f"{plan.run.name}: GiB per device{_devices(plan)}", "", *_roles(plan), "", *_phases(plan), "", RESIDENT]
    fits = "fits" if plan.peak <= room(device_gb) else "does not fit"
    lines.append(
        f"peak {_gib(plan.peak)} GiB; of {device_gb:g} GiB, {_gib(room(device_gb))} are usable "
        f"({RESERVE:.0%} is left to the driver and to fragments): it {fits}"
    )
    return "\n".join(lines)


def advice_table(single: Sequence[Change], combined: Change | None, device_gb: float) -> str:
    """Return the changes, with the peak that each leads to."""
    if not single:
        return "no known change makes it smaller: use a smaller model or shorter rows"
    limit = room(device_gb)
    width = max(len(change.overrides) for change in single)
    lines = ["with one change, the peak in GiB:"]
    lines += [
        f"  {change.overrides:<{width}}  {_gib(change.peak):>7}{'  fits' if change.peak <= limit else ''}"
        for change in single
    ]
    if combined is not None:
        lines += ["together:", f"  {combined.overrides}  {_gib(combined.peak)}  fits"]
    elif all(change.peak > limit for change in single):
        lines.append("even all of them together do not make it fit: use a smaller model, shorter rows or more devices")
    return "\n".join(lines)


def _devices(plan: Plan) -> str:
    devices = plan.run.devices
    return f" ({devices.processes} devices, {devices.sharding})" if devices.processes > 1 else ""


def _roles(plan: Plan) -> list[str]:
    rows = [(role.name, [role.weights, role.optimizer, role.gradients], role.note) for role in plan.roles]
    return _columns("role", ["weights", "optimiser", "gradients"], rows)


def _phases(plan: Plan) -> list[str]:
    names = ["resident", "gradients", "activations", "KV cache", "logits", "buffers", "total"]
    rows = [(phase.name, _figures(plan, phase), "<- peak" * (phase is plan.largest)) for phase in plan.phases]
    return _columns("phase", names, rows)


def _figures(plan: Plan, phase: Phase) -> list[int]:
    parts = [plan.resident(phase), phase.gradients, phase.activations, phase.kv_cache, phase.logits, phase.buffers]
    return [*parts, sum(parts)]


def _columns(title: str, names: list[str], rows: list[tuple[str, list[int], str]]) -> list[str]:
    width = max(len(title), *(len(name) for name, _, _ in rows))
    lines = [f"{title:<{width}}" + "".join(f"{name:>13}" for name in names)]
    for name, figures, note in rows:
        line = f"{name:<{width}}" + "".join(f"{_gib(figure):>13}" for figure in figures)
        lines.append(f"{line}  {note}".rstrip())
    return lines


def _gib(size: int) -> str:
    """Return a size with three digits: 12.3 for a large model, 0.0123 for a small one."""
    if size == 0:
        return "-"
    value = size / GIB
    return f"{value:.1f}" if value >= 10 else f"{value:.3g}"
