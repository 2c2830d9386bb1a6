"""The pages that `--help` prints: one screen per command, 80 columns wide."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rlhf_lightning.errors import UserError
from rlhf_lightning.guide.composed import groups, options
from rlhf_lightning.value_checks import did_you_mean, nearest

WIDTH = 80
_NAMED_TOGETHER = ("cost", "callbacks/average")  # groups that have one line together while each has one option
_LONGEST_LIST = 4  # lines of the options of a group


@dataclass(frozen=True)
class Page:
    """What the page of a command is made of.

    Attributes:
        about: what the command does, as the rest of "rlhf-train: ...".
        usage: the words after the command's name.
        examples: words after the command's name -> what they do; a long one has its line for itself.
        keys: the keys that a user meets first, with a line about each.
        result: what it leaves behind.
    """

    about: str
    usage: str
    examples: Mapping[str, str]
    keys: Mapping[str, str]
    result: str = ""
    topics: Mapping[str, str] = field(default_factory=dict)


PAGES: dict[str, Page] = {
    "rlhf-train": Page(
        "train a language model from human feedback",
        "[group=option ...] [key=value ...]",
        {
            "experiment=sft_demo": "needs no files and no network",
            "experiment=sft model.path=gpt2 data.train=my_rows.jsonl": "",
            "experiment=ppo_demo explain=true": "print the batch sizes and stop",
            "experiment=ppo_demo ckpt=last": "resume a run that was stopped",
            "-m experiment=sft_demo seed=0,1,2": "a sweep: one run per value",
        },
        {
            "model.path": "Hugging Face folder, earlier run folder or hub name",
            "data.train, data.val": "rows to learn from, and rows to validate on",
            "trainer.max_epochs": "passes over the data, or iterations of PPO, GRPO, ...",
            "seed, run_dir": "of all randomness; the folder of the run",
        },
        topics={
            "--help algorithm=grpo": "its keys: types, ranges, defaults; also --help KEY",
            "--list experiments": "what there is; --list alone: what can be listed",
            "--config-dir my_conf": "add your own folder of configs",
            "--install-completion": "complete groups, options and keys with Tab",
        },
    ),
    "rlhf-pipeline": Page(
        "run several stages, each from the ones before, then evaluate",
        "pipeline=<option> [key=value ...]",
        {
            "pipeline=demo": "needs no files and no network",
            "pipeline=demo seed=1 run_dir=outputs/demo1": "",
            "pipeline=demo stages.ppo.algorithm.kl.target=3": "",
            "pipeline=demo from=ppo": "keep the earlier stages",
            "pipeline=demo '~stages.dpo'": "leave a stage out",
            "pipeline=rounds rounds=3": "feedback, reward, PPO: 3 times",
        },
        {
            "stages.<stage>.<key>": "any key of rlhf-train, for that stage",
            "stages.<stage>.experiment": "the experiment that a stage runs",
            "stages.<stage>.model_from": "the stage whose model it starts from; also reward_from",
            "stages.<stage>.members": "that many reward models, used as an ensemble",
            "rounds, round.<stage>.<key>": "how often the stages of `round` repeat, and their keys",
            "labelers": "who labels in rounds: people | simulated | judge",
            "from, run_dir, seed": "first stage to run; folder and seed of the pipeline",
            "evaluation.*": "prompts, baseline, reference, gold and proxy reward",
            "explain=true": "print the batch sizes of every stage and stop",
        },
        "All stages are checked before the first one starts. The end is a table, "
        "summary.json and report.html in run_dir.",
    ),
    "rlhf-evaluate": Page(
        "compare policies on held-out prompts, or rewards on pairs",
        "policies={...} prompts=<file> baseline=<name> [key=value]",
        {
            "'policies={sft:outputs/demo/sft,ppo:outputs/demo/ppo}' \\": "",
            "    baseline=sft prompts=outputs/demo/world/prompts_test.jsonl": "",
            "'rewards={demo:{model:outputs/demo/reward}}' \\": "",
            "    preferences=outputs/demo/world/preferences_test.jsonl": "",
        },
        {
            "policies": "{name: run folder, Hugging Face folder or hub name, ...}",
            "prompts": "rows with a prompt that no policy was trained on",
            "baseline, reference": "the policies for win rates and for the KL",
            "gold.*, proxy.*": "the true reward and the trained-on one: function or model",
            "judge.*": "compares responses with the baseline's, in both orders",
            "rewards, preferences, category": "accuracy of rewards on preference pairs",
            "refusal_detector": "who says what refuses, of prompts with a kind: rule | judge",
            "refusals": "rows of prompt, response, refused: corrects refusal rates",
            "best_of, reward.*": "compare each policy's best of n samples by a reward too",
            "best_of, course": "best-of-n beside a training run",
            "self_bleu, embeddings.model": "diversity: responses to compare; an encoder",
            "harness": "tasks of lm-eval: names, or files of your own",
            "samples_per_prompt, temperature": "sampling; also max_new_tokens, batch_size, seed",
            "ilql_beta": "strength of the values of policies that ILQL trained",
            "dtype, attn_implementation": "how the policies are loaded",
            "run_dir": "default: outputs/evaluate/<time>",
        },
        "Prints a table and writes report.html and summary.json.",
    ),
    "rlhf-plan": Page(
        "the memory a run needs per device, and how to make it fit",
        "[group=option ...] [key=value ...] [device_gb=80]",
        {
            "experiment=sft model.path=my_model/config.json": "",
            "experiment=dpo model.path=my_model model/adapter=lora device_gb=24": "",
            "experiment=ppo model.path=my_model reward.model=my_reward_model": "",
            "pipeline=instructgpt stages.sft.model.path=my_model": "",
        },
        {
            "device_gb": "GiB of one device; default: 80",
            "model.path": "a folder, its config.json, a run folder or a hub name; "
            "only the configuration is read, never the weights",
            "pipeline": "plan every stage of a pipeline",
            "<key>": "any key of rlhf-train; data.train may be left out",
        },
        "Prints two tables in GiB: weights, optimiser state and gradients of each "
        "network (policy, reference, critic, reward model), and what each phase of the "
        "run adds (activations, KV cache, logits). Rows are assumed to be as long as "
        "data.max_length, or max_prompt_length + max_new_tokens, allows.",
        topics={
            "--help algorithm=grpo": "the keys of an option, or a key",
            "--list experiments": "what there is; --list alone: what can be listed",
        },
    ),
    "rlhf-export": Page(
        "write a run's model as a folder that transformers or peft loads",
        "run=<run folder> to=<new folder> [key=value ...]",
        {
            "run=outputs/demo/ppo to=my_model": "",
            "run=outputs/demo/ppo to=my_model dtype=bfloat16 overwrite=true": "",
            "run=outputs/my/lora to=my_adapter form=adapter": "",
            "average=[outputs/my/reward1,outputs/my/reward2] to=my_average": "",
        },
        {
            "run": "the folder of a finished training run",
            "average, weights": "runs from the same model whose weights are averaged; how much each counts",
            "to": "the folder to write; it must be new or empty",
            "form": "merged: a whole model, with a LoRA adapter added to its base | adapter: the adapter alone",
            "dtype": "float32 | bfloat16 | float16; default: as in training",
            "attn_implementation": "the attention to load the model with",
            "overwrite": "true: replace an earlier export",
        },
        "The folder holds weights, tokenizer, chat template, generation config and a "
        "README.md: what the model is, its data, config, final metrics and ancestors, "
        "and the Python that loads it. After an error, `to` is as it was before.",
    ),
    "rlhf-track": Page(
        "send runs to their MLflow store again where it has missed a part",
        "run=<folder> [key=value ...]",
        {
            "run=outputs/demo/ppo": "one run",
            "run=outputs/demo": "a pipeline with its stages",
            "run=outputs/sweeps": "every run below a folder",
            "run=outputs/demo/ppo tracking_uri=http://server:5000": "",
        },
        {
            "run": "the folder of a training run, of a pipeline, or of several runs",
            "tracking_uri": "the MLflow store; default: the one that the run used. A "
            "store with a password has to be given again",
        },
        "An MLflow store that does not answer never stops a run: metrics.jsonl in the "
        "run folder has every value. What the store already has is not sent twice, and "
        "a model that was to be registered becomes a version now.",
    ),
    "rlhf-chat": Page(
        "talk to a model in the terminal",
        "model=<folder or name> [key=value ...]",
        {
            "model=outputs/demo/ppo": "",
            "model=outputs/demo/ppo compare_with=outputs/demo/sft": "two answers",
            "model=outputs/demo/ppo temperature=0": "the most likely answer",
            "model=outputs/demo/sft best_of=8 reward.model=outputs/demo/reward": "",
        },
        {
            "model": "run folder, Hugging Face folder or hub name",
            "compare_with": "a second model that answers the same messages",
            "system": "system message, if the tokenizer has a chat template",
            "temperature": "of sampling; 0: always the most likely token",
            "ilql_beta": "strength of the values of a model that ILQL trained",
            "best_of, reward.*": "show the best of n answers by a reward",
            "max_new_tokens": "longest answer, in tokens",
            "seed": "the same seed and messages give the same answers",
            "dtype, attn_implementation": "how the model is loaded",
        },
        "With a chat template the model remembers the conversation; without one, it "
        "continues each line on its own. /reset starts a new conversation, /exit or "
        "Ctrl-D leaves, Ctrl-C ends an answer. Messages may also be piped in.",
    ),
    "rlhf-agreement": Page(
        "how far labelers agree, who is biased, and the labels as files",
        "[feedback.store=<URL>] [export=<folder>] [key=value ...]",
        {
            "": "measure the default store",
            "export=outputs/labels": "rows to train on",
            "export=outputs/labels kind=unpaired method=dawid_skene": "for KTO",
            "export=outputs/project format=label_studio": "for another tool",
            "import=project.json format=label_studio": "and back",
        },
        {
            "feedback.store": "where the judgements are: a URL of SQLAlchemy",
            "labelers": "count only the judgements of these: [ana,bo]",
            "export, import": "folder to write labels to; file to read them from",
            "format": "rows (to train on) | argilla | label_studio",
            "kind": "of rows: preference | ranked | unpaired",
            "method": "of rows, several labelers to one verdict: majority | dawid_skene | bradley_terry",
            "held_out": "of rows: share of the prompts in the test split",
            "names.*": "of an import: question, prompt and responses",
            "draws, seed": "of the bootstrap; the seed also of the split",
            "run_dir": "default: outputs/agreement/<time>",
        },
        "Measures raw agreement, Cohen's kappa, Krippendorff's alpha, agreement with "
        "oneself and with check tasks, and the influence of position, length and speed.",
    ),
    "rlhf-collect": Page(
        "sample responses and make tasks that people or a judge compare",
        "prompts=<file> policies={...} [key=value ...]",
        {
            "prompts=prompts.jsonl 'policies={sft:outputs/demo/sft}'": "",
            "prompts=prompts.jsonl 'policies={ppo:outputs/demo/ppo}' \\": "",
            "    samples_per_prompt=4 choice=best_worst reward.model=outputs/demo/reward": "",
            "prompts=prompts.jsonl 'policies={m:\"http://localhost:8000\"}'": "",
            "responses=responses.jsonl checks=known.jsonl": "",
        },
        {
            "prompts, policies": "what is answered, and by whom",
            "responses": "or rows that already have responses",
            "samples_per_prompt, temperature": "also max_new_tokens, max_prompt_length, batch_size",
            "limit, seed, explain": "first rows only; explain=true says what would be done",
            "dtype, attn_implementation": "how the policies are loaded",
            "choice": "random | uncertain | best_worst | ranking",
            "pairs, max_tasks": "most pairs per prompt, and most tasks in all",
            "overlap, overlap_share": "labelers per task, for that share of the tasks",
            "reask, checks": "share asked again; pairs with a known answer",
            "reward.model, reward.function": "the scores for uncertain and best_worst",
            "reward.batch_size, reward.dtype": "also reward.attn_implementation, reward.timeout",
            "feedback.store": "where tasks go: a URL of SQLAlchemy",
        },
        "Repeating the command samples nothing twice: it continues with what is missing.",
    ),
    "rlhf-label": Page(
        "serve the labelling page, with a personal link for each labeler",
        "labelers=[ana,bo] [key=value ...]",
        {
            "labelers=[ana,bo]": "",
            "labelers=[ana,bo] guidelines=guidelines.md port=8080": "",
            "labelers=[ana,bo] host=0.0.0.0": "reachable from other machines",
            "renew=[bo] host=0.0.0.0": "a new link for bo",
        },
        {
            "labelers": "names; default: those already in the store",
            "renew": "names that get a new link; the old one stops working",
            "feedback.store": "the store of rlhf-collect",
            "guidelines": "a Markdown file that labelers read first",
            "criteria, flags": "what is scored from 1 to 5, and what can be flagged",
            "host, port": "default: 127.0.0.1, this machine only, and 8000",
            "url": "what links begin with if a proxy is in front",
            "returns_after": "seconds until an abandoned task goes to someone else",
            "repeat_gap": "answers between a task and its repetition",
        },
        "It runs until Ctrl-C. On this machine a link contains a name; beyond it, a "
        "token that is printed once. An answer that the page has accepted is on disk.",
    ),
    "rlhf-judge": Page(
        "let a model label by principles (RLAIF), or revise answers",
        "judge.model=<folder or name> [key=value ...]",
        {
            "judge.model=outputs/my/sft": "judge the tasks in the store",
            "judge.model=outputs/my/sft data=preferences.jsonl limit=100": "",
            "judge.model=outputs/my/sft revise=answers.jsonl": "critique, revise",
            "judge.url=http://localhost:8000/v1 judge.model=m judge.by=reasons": "",
        },
        {
            "judge.model": "run folder, Hugging Face folder or hub name",
            "judge.url": "or a server of OpenAI's chat completions (vllm serve), up to "
            "/v1; judge.model is then the name of the model there",
            "judge.by": "logprobs of the verdicts | reasons: generated, then parsed",
            "judge.constitution": "a YAML list of principles, one drawn per question",
            "judge.cache": "file of answers, so that none is asked for twice",
            "judge.key_env": "environment variable with the server's key",
            "judge.*": "more on servers, sampling and prices",
            "data": "pairs to judge instead: how far it agrees with their labels",
            "revise, revisions": "prompts with answers to revise, for SFT",
            "tie_below, limit, seed": "what counts as a tie; most tasks; randomness",
            "feedback.store, labeler": "whose tasks, and the judge's name there",
            "run_dir": "default: outputs/judge/<time>",
        },
        "Each pair is judged in both orders. The same command continues where it stopped.",
    ),
}


def page(command: str, config_dir: str | None = None) -> str:
    """Return the page of a command, such as `rlhf-train`."""
    made, name = PAGES[command], command.removeprefix("rlhf-")
    lines = [*textwrap.wrap(f"{command}: {made.about}", WIDTH), "", f"usage: {command} {made.usage}", ""]
    lines += [_example(command, words, text) for words, text in made.examples.items()]
    if name in ("train", "pipeline"):
        lines += ["", "groups (group=option)", *_groups(name, config_dir)]
    lines += ["", "keys (key=value)", *table(made.keys), ""]
    lines += [*textwrap.wrap(made.result, WIDTH), ""] if made.result else []
    topics = made.topics or {"--help KEY": "type, range and default; --help keys: every key"}
    return "\n".join([*lines, "options", *table(topics)])


def command_page() -> str:
    """Return the page of `rlhf`, one command in front of all the others."""
    rows = {name.removeprefix("rlhf-"): made.about for name, made in PAGES.items()}
    lines = ["rlhf: train language models from human feedback", "", "usage: rlhf <command> [word ...]", ""]
    more = ["rlhf <command> --help explains one; rlhf train is the same as rlhf-train.", "", "options"]
    topics = {
        "--list": "what can be listed: rlhf train --list",
        "--install-completion": "complete words with Tab in bash",
    }
    return "\n".join([*lines, *table(rows), "", *more, *table(topics)])


def named_command(words: Sequence[str]) -> str | None:
    """Return the command that the first word after `rlhf` names; None if there is none, or for rlhf's own help.

    Raises:
        UserError: there is no such command.
    """
    name = words[0] if words else "--help"
    if name in ("-h", "--help", "help"):
        return None
    if f"rlhf-{name}" not in PAGES:
        known = [each.removeprefix("rlhf-") for each in PAGES]
        raise UserError(f"rlhf {name}: no such command{did_you_mean(nearest(name, known))}; one of {', '.join(known)}")
    return name


def table(rows: Mapping[str, str], longest: int = 32, indent: int = 2) -> list[str]:
    """Return names and their meanings in two columns; a name that is too long gets a line to itself."""
    column = min(longest, max(map(len, rows), default=0))
    lines, left = [], " " * indent
    for name, text in rows.items():
        wrapped = textwrap.wrap(" ".join(text.split()), WIDTH - column - indent - 2)
        if len(name) > column:
            lines.append(f"{left}{name}")
        else:
            lines.append(f"{left}{name:<{column}}  {wrapped.pop(0) if wrapped else ''}".rstrip())
        lines += [" " * (column + indent + 2) + line for line in wrapped]
    return lines


def _example(command: str, words: str, text: str) -> str:
    shown = f"  {words}" if words.startswith(" ") else f"  {command} {words}".rstrip()
    return f"{shown:<46}  {text}".rstrip()


def _groups(command: str, config_dir: str | None) -> list[str]:
    """Return the options of each group; where there are many, as many as there is room for."""
    found = {group: options(group, config_dir) for group in groups(command, config_dir)}
    single = [
        f"{group}={listed[0]}" for group, listed in found.items() if len(listed) == 1 and group in _NAMED_TOGETHER
    ]
    rows = {group: listed for group, listed in found.items() if len(listed) > 1 or group not in _NAMED_TOGETHER}
    width = max(map(len, rows))
    lines = []
    for group, listed in [*rows.items(), *([("others", single)] if single else [])]:
        wrapped = textwrap.wrap(", ".join(listed), WIDTH - width - 4)
        if len(wrapped) > _LONGEST_LIST:
            wrapped = [_cut(wrapped[0])]
        lines.append(f"  {group:<{width}}  {wrapped[0] if wrapped else ''}".rstrip())
        lines += [" " * (width + 4) + line for line in wrapped[1:]]
    return lines


def _cut(line: str) -> str:
    """Return a line of names cut after a whole name, ending in three dots."""
    return f"{line[:-5].rpartition(', ')[0]}, ..."
