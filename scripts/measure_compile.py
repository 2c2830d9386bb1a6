"""Is torch.compile worthwhile in decoding? Times a step of transformers with its static cache, plain and compiled.

    python scripts/measure_compile.py                          # the random Llama of the benchmark, 2 layers of 128
    python scripts/measure_compile.py --llama 8x512
    python scripts/measure_compile.py --model SmolLM2-135M     # a Hugging Face folder

Shapes are fixed and nothing is sampled, the best case for a compiler: rows that leave or start would trigger
recompilation. It needs a C++ compiler.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from comparison import inputs
from torch import Tensor
from transformers import AutoModelForCausalLM, StaticCache


def main() -> None:
    """Print the time to compile, and the milliseconds of a step."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="", help="a Hugging Face folder; without it, a random Llama")
    parser.add_argument("--llama", default="2x128", help="layers x width of the random Llama")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--columns", type=int, default=126, help="tokens that the cache has room for")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        layers, width = (int(number) for number in given.llama.split("x"))
        model = given.model or inputs.random_llama(Path(folder), layers, width)
        network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval().requires_grad_(False)
    print(report(network, given.rows, given.columns))


@torch.no_grad()
def report(network: Any, rows: int, columns: int, alternations: int = 5, steps: int = 30) -> str:
    """Return the compile time and both medians, in words."""
    cache = StaticCache(config=network.config, max_cache_len=columns)
    ids, places = torch.full((rows, 1), 5), torch.zeros(rows, 1, dtype=torch.long)
    mask = torch.ones(rows, 1, 1, columns, dtype=torch.bool)

    def step() -> Tensor:
        out = network.base_model(
            input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True
        )
        states: Tensor = out.last_hidden_state
        return states

    compiled = torch.compile(step, dynamic=False)
    started = time.perf_counter()
    for _ in range(2):  # the second one finds the cache in place, and compiles again
        results = []
        for run in (compiled, step):
            cache.reset()
            results.append(run())
        torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)
    compiling = time.perf_counter() - started
    times: dict[Callable[[], Tensor], list[float]] = {step: [], compiled: []}
    for _ in range(alternations):
        for run, found in times.items():
            cache.reset()
            started = time.perf_counter()
            for _ in range(steps):
                run()
            found.append((time.perf_counter() - started) / steps)
    plain, fast = (1000 * statistics.median(found) for found in times.values())
    return f"compiled in {compiling:.0f} s; a step takes {plain:.2f} ms as it is, {fast:.2f} ms compiled"


if __name__ == "__main__":
    main()
