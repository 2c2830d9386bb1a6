"""The tables of docs/performance.md, from what was measured."""

from __future__ import annotations

from statistics import median
from typing import Any

from comparison.floors import floor_seconds
from comparison.rows import ROWS, UPDATE_AIM, UPDATE_ROW, Row

Measured = dict[str, Any]
"""Of a row: `alternations`, `threads`, `speeds`, `ours` and `peer`: what `prepare` and every `repeats` answered."""


def speeds(side: Measured) -> list[float]:
    """Units a second of every repetition."""
    return [repeat["done"] / repeat["seconds"] for repeat in side["repeats"]]


def peak(row: Row, side: Measured) -> float:
    """Median of the peaks in bytes; for PPO over the model's own."""
    own = side["model"] if row.task == "ppo" else 0
    return median(repeat["peak"] for repeat in side["repeats"]) - own


def ratio_of_speeds(measured: Measured) -> float:
    """Ratio of medians, ours to the peer's."""
    return median(speeds(measured["ours"])) / median(speeds(measured["peer"]))


def best_speeds(measured: Measured) -> dict[str, float]:
    """The machine's speeds: the best that was seen beside the repetitions."""
    return {
        name: max(seen[name] for seen in measured["speeds"]) for name in ("operations", "torch_operations", "bytes")
    }


def share_of_floor(measured: Measured) -> float:
    """The shortest possible time over the median of ours."""
    repeats = measured["ours"]["repeats"]
    return floor_seconds(repeats[0], best_speeds(measured)) / median(repeat["seconds"] for repeat in repeats)


def update_share(measured: Measured) -> float:
    """Share of the matmul peak in PPO's update phase."""
    repeats = measured["ours"]["repeats"]
    speed = repeats[0]["update_operations"] / median(repeat["update_seconds"] for repeat in repeats)
    return speed / best_speeds(measured)["operations"]


def speed_table(results: dict[str, Measured]) -> str:
    """Speeds, ratio of medians, and how near ours is to the floor."""
    lines = [
        "| what | unit | ours: min / median / max | peer: min / median / max | ratio of medians | aim | floor / ours |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in ROWS:
        if row.key in results:
            measured = results[row.key]
            ours, peer = (_three(speeds(measured[side])) for side in ("ours", "peer"))
            ratio = f"{ratio_of_speeds(measured):.2f} | ≥ {row.aim:g}"
            lines.append(f"| {row.what} | {row.unit}/s | {ours} | {peer} | {ratio} | {share_of_floor(measured):.0%} |")
    if UPDATE_ROW in results:
        share = update_share(results[UPDATE_ROW])
        what = next(row.what for row in ROWS if row.key == UPDATE_ROW)
        lines.append(f"| {what}: update phase | share of peak | {share:.0%} | | | ≥ {UPDATE_AIM:.0%} | {share:.0%} |")
    return "\n".join(lines)


def memory_table(results: dict[str, Measured]) -> str:
    """Peaks of resident memory."""
    lines = ["| what | ours, MiB | peer, MiB | ratio | aim |", "| --- | --- | --- | --- | --- |"]
    for row in ROWS:
        if row.key in results:
            ours, peer = (peak(row, results[row.key][side]) for side in ("ours", "peer"))
            aim = "" if row.memory_aim is None else f"≤ {row.memory_aim:g}"
            lines.append(f"| {row.what} | {ours / 2**20:.0f} | {peer / 2**20:.0f} | {ours / peer:.2f} | {aim} |")
    return "\n".join(lines)


def circumstances_table(results: dict[str, Measured]) -> str:
    """How each row was measured."""
    lines = [
        "| what | alternations | threads | products, GFLOP/s | by torch's own library | reading, GB/s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in ROWS:
        if row.key in results:
            measured = results[row.key]
            best = best_speeds(measured)
            machine = (
                f"{best['operations'] / 1e9:.0f} | {best['torch_operations'] / 1e9:.0f} | {best['bytes'] / 1e9:.1f}"
            )
            lines.append(f"| {row.what} | {measured['alternations']} | {measured['threads']} | {machine} |")
    return "\n".join(lines)


def profile_table(operators: list[tuple[str, float, int]], rows: int = 12) -> str:
    """Where the time of a repetition goes: seconds inside each operator, the rest (Python, Lightning) included."""
    total = sum(seconds for _, seconds, _ in operators)
    lines = ["| operator | share of the time | calls |", "| --- | --- | --- |"]
    for name, seconds, count in sorted(operators, key=lambda entry: -entry[1])[:rows]:
        lines.append(f"| `{name}` | {seconds / total:.1%} | {count} |")
    return "\n".join(lines)


def _three(values: list[float]) -> str:
    return " / ".join(f"{value:.3g}" for value in (min(values), median(values), max(values)))
