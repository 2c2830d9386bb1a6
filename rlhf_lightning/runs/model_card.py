"""The model card: README.md of an exported folder, with the front matter that the Hugging Face hub reads.

It says what the model is, what it was trained on, its final metrics, the runs it went through, and how to load it with
plain transformers or peft. Everything is read from the run folder; what is not known is left out.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rlhf_lightning.durable import write_text_durably
from rlhf_lightning.hashes import ILQL_HEADS
from rlhf_lightning.outside_text import as_code, for_markdown, for_terminal
from rlhf_lightning.runs.config_file import config_text
from rlhf_lightning.runs.lineage import lineage
from rlhf_lightning.runs.run import Run, read_run
from rlhf_lightning.secret_text import shown, without_secrets
from rlhf_lightning.source.constructors import setting

LIBRARIES = ("rlhf-lightning", "torch", "lightning", "transformers", "peft", "safetensors")
QUANTIZED = (
    "The adapter was trained on the base in 4 bits. On the unquantised base, which is what it is merged into, answers "
    "differ by that rounding; to get those of training, load the base in 4 bits and the adapter on it."
)
DECODED = (
    "`rlhf-chat` and `rlhf-evaluate` decode it with the values of the heads in `{file}`: from the policy's "
    "log-probabilities plus {strength} times the advantage of each token (`ilql_beta` changes the strength). Plain "
    "transformers does not read that file: the code below answers as the policy alone, which imitates its data."
)
_NO_METRICS = ("experiment", "seed", "train_rows", "val_rows")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


Average = Sequence[tuple[Run, float]]  # the runs whose weights were averaged, and how much each counts


def write_model_card(run: Run, folder: Path, *, name: str, load_from: str, chat: bool, average: Average = ()) -> None:
    """Write README.md into the folder with the run's model, or its adapter. Arguments as for `model_card`."""
    adapter = (folder / "adapter_config.json").is_file()
    write_text_durably(folder / "README.md", model_card(run, name, load_from, adapter, chat, average))


def model_card(run: Run, name: str, load_from: str, adapter: bool, chat: bool, average: Average = ()) -> str:
    """Return the card of a run's model, or of an average's.

    Args:
        run: the run that trained it.
        name: the title.
        load_from: the folder that the loading commands name.
        adapter: the folder has only the adapter.
        chat: the tokenizer has a chat template.
        average: the model is the mean of these runs, the first of which is `run`; empty: it is the run's own.
    """
    former, base = lineage(run)
    sections = {
        "": _of_average(average, base) if average else _introduction(run, adapter),
        "Use": _fenced(loading_code(run, load_from, adapter, chat), "python"),
        "Data": "" if average else _table(("split", "source", "rows"), _data(run)),
        "Metrics": "" if average else _metrics(run.summary),
        "Lineage": "" if average else _lineage(run, former, base),
        "Config": "" if average else _config(run.config),
        "Versions": ", ".join(f"{library} {number}" for library, number in library_versions().items()) + ".",
    }
    parts = [_front_matter(run, str(run.adapter_base) if adapter else base, adapter), f"# {for_markdown(name)}"]
    parts += [f"## {title}\n\n{text}" if title else text for title, text in sections.items() if text]
    return shown("\n\n".join(parts) + "\n")


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the installed libraries."""
    found = {"Python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def loading_code(run: Run, load_from: str, adapter: bool, chat: bool) -> str:
    """Return Python code that loads the folder with plain transformers or peft, and uses it once."""
    task = "SequenceClassification" if run.is_reward_model else "CausalLM"
    library, loader = ("peft", f"AutoPeftModelFor{task}") if adapter else ("transformers", f"AutoModelFor{task}")
    # The base does not know the head; without a pad token the last token is scored, which is the answer's end.
    labels = 2 if run.scores_steps else 1
    settings = f", num_labels={labels}, pad_token_id=None" if adapter and run.is_reward_model else ""
    imports = f"from {library} import {loader}\nfrom transformers import AutoTokenizer"
    if not adapter:
        imports = f"from transformers import {loader}, AutoTokenizer"
    source = json.dumps(load_from)
    loading = f"""{imports}

tokenizer = AutoTokenizer.from_pretrained({source})
model = {loader}.from_pretrained({source}{settings})
"""
    if not run.is_reward_model:
        return loading + _generating(chat)
    if run.scores_steps:
        separator = json.dumps((run.config.get("data") or {}).get("step_separator", "\n"))
        return loading + _STEP_SCORING.replace("SEPARATOR", separator)
    meaning = "above 0: unsafe" if run.declaration.roles[0] == "cost" else "higher is better"
    return loading + _scoring(chat).replace("{meaning}", meaning)


_STEP_SCORING = """separator = SEPARATOR
text = "What is 1 + 2 + 3?" + "1 + 2 = 3" + separator + "3 + 3 = 6" + separator  # a step ends with its separator
inputs = tokenizer(text, return_tensors="pt")
right = model(**inputs).logits.softmax(dim=1)[0, 1].item()  # the probability that the last step is right"""


def _scoring(chat: bool) -> str:
    if chat:
        return """messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "How can I help?"}]
text = tokenizer.apply_chat_template(messages, tokenize=False)
text = text.rstrip() if text.rstrip().endswith(tokenizer.eos_token) else text + tokenizer.eos_token  # ends once
inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
score = model(**inputs).logits.item()  # {meaning}"""
    return """text = "Hello" + " How can I help?" + tokenizer.eos_token  # prompt, answer, and the end of the answer
inputs = tokenizer(text, return_tensors="pt")
score = model(**inputs).logits.item()  # {meaning}"""


def _generating(chat: bool) -> str:
    if chat:
        inputs = """messages = [{"role": "user", "content": "Hello"}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)"""
    else:
        inputs = 'inputs = tokenizer("Hello", return_tensors="pt")'
    return f"""{inputs}
output = model.generate(**inputs, max_new_tokens=64)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))"""


def _front_matter(run: Run, base: str, adapter: bool) -> str:
    kind = "process-reward-model" if run.scores_steps else "reward-model"
    tag = kind if run.is_reward_model else run.algorithm.removesuffix("Module").lower()
    fields: dict[str, Any] = {"library_name": "peft" if adapter else "transformers"}
    if _on_the_hub(base):
        fields["base_model"] = base  # the hub refuses a card whose base is a path
    fields["pipeline_tag"] = "text-classification" if run.is_reward_model else "text-generation"
    fields["tags"] = ["rlhf-lightning", tag, *(["lora"] if adapter else [])]
    return f"---\n{config_text(fields).strip()}\n---"


def _on_the_hub(base: str) -> bool:
    return bool(_HUB_NAME.fullmatch(base)) and not Path(base).exists()


def _introduction(run: Run, adapter: bool) -> str:
    kind = {"reward": "reward model", "cost": "cost model"}.get(run.declaration.roles[0], "language model")
    kind = f"process {kind}" if run.scores_steps else kind
    what = f"A {kind} begun from {as_code(run.begins_from)}"
    if adapter:
        what = f"A {kind} as an adapter for {as_code(str(run.adapter_base))}"
    words = run.declaration.title
    trained = f"{words} ({as_code(run.algorithm)})" if words else as_code(run.algorithm)
    name, seed = as_code(str(run.config.get("name"))), for_markdown(str(run.config.get("seed")))
    text = f"{what}, trained by {trained} with rlhf-lightning: {name}, seed {seed}."
    if run.quantized:
        text += f"\n\n{QUANTIZED}"
    if (decay := _average(run)) is not None:
        text += f"\n\nIts weights are an exponential moving average (decay {decay:g}) of those in training."
    if "q_heads" in run.declaration.roles:
        strength = setting(run.config["algorithm"], "beta")
        text += "\n\n" + DECODED.format(file=ILQL_HEADS, strength=for_markdown(_shown(strength)))
    if run.is_reward_model and run.summary.get("val/score_std") is not None:
        mean, std = (_shown(run.summary[f"val/score_{key}"]) for key in ("mean", "std"))
        text += f"\n\nIts scores of held-out answers have mean {mean} and standard deviation {std} (`score_mean` and "
        text += "`score_std` in `config.json`); `(score - score_mean) / score_std` is in units that models share."
    return text


def _of_average(average: Average, base: str) -> str:
    run, whole = average[0][0], sum(weight for _, weight in average)
    kind = {"reward": "reward model", "cost": "cost model"}.get(run.declaration.roles[0], "language model")
    text = f"A {kind} whose weights are the mean of those of {len(average)} runs with rlhf-lightning, all from "
    text += f"{as_code(base)} (Rame et al. 2024).\n\n"
    text += _table(("run", "share"), ((_link(each), f"{weight / whole:.4g}") for each, weight in average))
    return text + (f"\n\n{QUANTIZED}" if any(each.quantized for each, _ in average) else "")


def _average(run: Run) -> float | None:
    """Return the decay of the average that the run exported; None if it exported its live weights."""
    for section in (run.config.get("callbacks") or {}).values():
        if isinstance(section, Mapping) and str(section.get("_target_", "")).endswith(".TrainableAverage"):
            return float(section.get("decay", 0.999)) if section.get("export", True) else None
    return None


def _data(run: Run) -> Iterator[tuple[str, str, str]]:
    data, summary = run.config.get("data") or {}, run.summary
    held_out = data.get("val") or (f"{data['val_fraction']:g} of train's prompts" if data.get("val_fraction") else None)
    for split, source in (("train", data.get("train")), ("val", held_out)):
        if source:
            yield split, for_markdown(str(source)), str(summary.get(f"{split}_rows", ""))


def _metrics(summary: Mapping[str, Any]) -> str:
    rows = [(as_code(name), for_markdown(_shown(value))) for name, value in summary.items() if name not in _NO_METRICS]
    return _table(("final metric", "value"), iter(rows))


def _lineage(run: Run, former: list[Run], base: str) -> str:
    lines = [*(_link(each) for each in (run, *former)), f"{as_code(base)}, the base model"]
    text = "\n".join(f"{i}. {line}" for i, line in enumerate(lines, 1))
    costs = _reward_sources(run.config.get("cost") or {}, of="Cost") if "cost" in run.declaration.roles else ()
    for name, value in (*_reward_sources(run.config.get("reward") or {}), *costs):
        text += f"\n\n{name}: {value}"
    return text


def _link(run: Run) -> str:
    words = run.declaration.title or run.algorithm
    name, seed = as_code(str(run.config.get("name"))), for_markdown(str(run.config.get("seed")))
    return f"{as_code(str(run.folder))}: {for_markdown(words)} ({name}, seed {seed})"


def _reward_sources(reward: Mapping[str, Any], part: str = "", of: str = "Reward") -> Iterator[tuple[str, str]]:
    """Yield where the scores came from that a policy was trained on; for a weighted sum, part by part."""
    for kind, title in (("model", f"{of} model"), ("function", f"{of} function")):
        if reward.get(kind):
            trained = read_run(reward[kind]) if kind == "model" else None
            yield f"{title}{part}", _link(trained) if trained else as_code(str(reward[kind]))
    models = reward.get("models") or []
    for number, path in enumerate(models, 1):
        trained, combine = read_run(path), for_markdown(str(reward.get("combine", "mean")))
        link = _link(trained) if trained else as_code(str(path))
        yield f"Reward model{part}, {number} of {len(models)} combined by {combine}", link
    functions = reward.get("functions") or []
    for function, number in zip(functions, reward.get("weights") or [1.0] * len(functions), strict=True):
        yield f"{of} function{part} with weight {for_markdown(_shown(number))}", as_code(function)
    if reward.get("url"):
        yield f"{of} server{part}", as_code(shown(reward["url"]))
    for name, component in (reward.get("components") or {}).items():
        weight = for_markdown(_shown(component.get("weight", 1.0)))
        yield from _reward_sources(component, f", part {for_markdown(name)} with weight {weight}")


def _config(config: Mapping[str, Any]) -> str:
    logger = {key: value for key, value in (config.get("logger") or {}).items() if key != "tags"}  # may hold anything
    kept = {**config, "logger": logger} if "logger" in config else config
    return _fenced(for_terminal(config_text(without_secrets(kept)).strip()), "yaml")


def _fenced(text: str, language: str) -> str:
    """Return a code block that nothing in the text can end."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def _shown(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(head)} |", "|" + "---|" * len(head), *lines]) if lines else ""
