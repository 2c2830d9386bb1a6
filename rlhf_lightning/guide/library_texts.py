"""What settings mean that neither a config file nor a docstring in Google's form explains, by the end of their key."""

from __future__ import annotations

TEXTS = {
    "model.path": "Hugging Face folder, earlier run folder or hub name",
    "data.train": "rows to learn from: JSONL, JSON, Parquet, a datasets folder or a hub name",
    "optimizer.lr": "learning rate, the highest one of the schedule",
    "betas": "decay of the running means of the gradient and of its square",
    "eps": "added to the denominator of the update",
    "weight_decay": "share of each weight that is taken off per step, times lr",
    "amsgrad": "divide by the largest second moment so far instead of the running one",
    "maximize": "climb instead of descend",
    "foreach": "update all parameters in a few fused operations; null: where it is faster",
    "capturable": "the step may be captured in a CUDA graph",
    "differentiable": "gradients flow through the step",
    "decoupled_weight_decay": "decay weights as AdamW does",
    "momentum": "share of the last update that is kept",
    "dampening": "share of the gradient that momentum leaves out",
    "nesterov": "look ahead along the momentum",
    "function": "a Python function by its dotted path: my_package.my_reward",
    "gold.arguments": "passed to the function by name",
    "proxy.arguments": "passed to the function by name",
    "reward.arguments": "passed to the function by name",
    "embeddings.model": "a Hugging Face encoder, a folder or a hub name; null: left out",
    "gold.model": "or a reward model: a run folder or a Hugging Face folder",
    "proxy.model": "or a reward model: a run folder or a Hugging Face folder",
    "reward.model": "a reward model: a run folder or a Hugging Face folder; several: [a,b]",
    "batch_size": "rows per forward pass",
    "dtype": "precision of the weights; auto: the checkpoint's",
    "attn_implementation": "the attention; null: the fastest one that the model family has",
    "timeout": "seconds before a call is given up; null: no limit",
    "temperature": "of sampling; 0: always the most likely token",
    "seed": "of everything that is drawn",
    "per_minute": "most requests per minute; null: no limit",
    "parallel": "requests at the same time",
    "attempts": "tries of a request before it is given up",
    "prompt_price": "of a million prompt tokens, to report the cost",
    "completion_price": "of a million generated tokens, to report the cost",
    "names.question": "the question that holds the verdict in the imported project",
    "names.prompt": "the field of the imported project that holds the prompt",
    "names.responses": "the fields that hold the responses; null: the usual names",
    "flags": "what a labeler may tick about a pair",
    "port": "of the server; 0: any that is free",
    "model.adapter": "null: every weight is trained; model/adapter=lora trains an adapter",
    "model.quantization": "null: weights in model.dtype; model/quantization=nf4 keeps them in 4 bits",
    "logger": "null or logger=none: only the run folder's own files",
    "stage": "what is sharded: 1 optimiser state, 2 gradients too, 3 weights too",
    "offload_optimizer": "keep the optimiser state in the CPU's memory",
    "offload_parameters": "keep the weights in the CPU's memory",
}


def text_of(key: str) -> str:
    """Return the text for the longest end of a dotted key that has one."""
    parts = key.split(".")
    ends = (".".join(parts[i:]) for i in range(len(parts)))
    return next((TEXTS[end] for end in ends if end in TEXTS), "")
