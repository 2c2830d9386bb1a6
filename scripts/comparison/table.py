"""The table of docs/performance.md, from the measurements."""

from __future__ import annotations

from statistics import median
from typing import Any

from comparison.floors import floor_seconds
from comparison.rows import ROWS, UPDATE_AIM, UPDATE_ROW, Row

Measured = dict[str, Any]
"""The measurements of a row: `alternations`, `threads`, `speeds`, and the answers of `ours` and `peer`."""


def speeds(side: Measured) -> list[float]:
    """Return the units per second of every repetition."""
    return [repeat["done"] / repeat["seconds"] for repeat in side["repeats"]]


def peak(row: Row, side: Measured) -> float:
    """Return the median of the peaks in bytes; for PPO, above the model's own."""
    own = side["model"] if row.task == "ppo" else 0
    return median(repeat["peak"] for repeat in side["repeats"]) - own


def ratio_of_speeds(measured: Measured) -> float:
    """Return the ratio of medians, ours to the peer's."""
    return median(speeds(measured["ours"])) / median(speeds(measured["peer"]))


def best_speeds(measured: Measured) -> dict[str, float]:
    """Return the machine's speeds: the best measured next to the repetitions."""
    return {
        name: max(seen[name] for seen in measured["speeds"]) for name in ("operations", "torch_operations", "bytes")
    }


def share_of_floor(measured: Measured) -> float:
    """Return the shortest possible time divided by our median."""
    repeats = measured["ours"]["repeats"]
    return floor_seconds(repeats[0], best_speeds(measured)) / median(repeat["seconds"] for repeat in repeats)


def update_share(measured: Measured) -> float:
    """Return the share of the matmul peak in PPO's update phase."""
    repeats = measured["ours"]["repeats"]
    speed = repeats[0]["update_operations"] / median(repeat["update_seconds"] for repeat in repeats)
    return speed / best_speeds(measured)["operations"]


def figures_table(results: dict[str, Measured]) -> str:
    """Return one row per comparison: speeds, ratio of medians, distance to the floor, and peaks of resident memory."""
    lines = [
        "| what | speed, ours: min / median / max | peer: min / median / max | ratio (aim) | floor / ours "
        "| memory, ours | peer | ratio (aim) | alternations |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in ROWS:
        if row.key in results:
            measured = results[row.key]
            ours, peer = (_three(speeds(measured[side])) for side in ("ours", "peer"))
            cells = [
                row.what,
                f"{ours} {row.unit}/s",
                peer,
                f"{ratio_of_speeds(measured):.2f} (≥ {row.aim:g})",
                f"{share_of_floor(measured):.0%}",
                *_memory(row, measured),
                f"{measured['alternations']}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _memory(row: Row, measured: Measured) -> tuple[str, str, str]:
    ours, peer = (peak(row, measured[side]) for side in ("ours", "peer"))
    aim = "" if row.memory_aim is None else f" (≤ {row.memory_aim:g})"
    return f"{ours / 2**20:.0f} MiB", f"{peer / 2**20:.0f} MiB", f"{ours / peer:.2f}{aim}"


def circumstances(results: dict[str, Measured]) -> str:
    """Return the machine's speeds next to the repetitions, and the share of them that PPO's updates use."""
    best = [best_speeds(measured) for measured in results.values()]
    threads = _range([float(measured["threads"]) for measured in results.values()], "{:.0f}")
    products, torch, reading = (
        _range([speeds[name] / 1e9 for speeds in best], form)
        for name, form in (("operations", "{:.0f}"), ("torch_operations", "{:.0f}"), ("bytes", "{:.1f}"))
    )
    lines = [
        f"- **Threads** of each side: {threads}.",
        f"- **Best rates beside the repetitions**: float32 products at {products} GFLOP/s, at {torch} with torch's own",
        f"  library; reading at {reading} GB/s.",
    ]
    if UPDATE_ROW in results:
        what = next(row.what for row in ROWS if row.key == UPDATE_ROW)
        lines += [
            f"- **Updates** of {what} run at {update_share(results[UPDATE_ROW]):.0%} of the peak rate of products "
            f"(aim: at least {UPDATE_AIM:.0%})."
        ]
    return "\n".join(lines)


def _range(values: list[float], form: str) -> str:
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low} to {high}"


def profile_table(operators: list[tuple[str, float, int]], rows: int = 12) -> str:
    """Return the seconds of a repetition inside each operator, including the rest (Python, Lightning)."""
    total = sum(seconds for _, seconds, _ in operators)
    lines = ["| operator | share of the time | calls |", "| --- | --- | --- |"]
    for name, seconds, count in sorted(operators, key=lambda entry: -entry[1])[:rows]:
        lines.append(f"| `{name}` | {seconds / total:.1%} | {count} |")
    return "\n".join(lines)


def _three(values: list[float]) -> str:
    return " / ".join(f"{value:.3g}" for value in (min(values), median(values), max(values)))
