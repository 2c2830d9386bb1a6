"""The pages that `--help` prints of the commands around human feedback."""

from __future__ import annotations

from rlhf_lightning.commands.help import key_table


def agreement_help(config_dir: str | None = None) -> str:
    """The page of rlhf-agreement."""
    keys = {
        "feedback.store": "the store, a URL of SQLAlchemy; default sqlite:///outputs/feedback.db",
        "labelers": "a list of names: only their judgements count",
        "import": "a file of Argilla or Label Studio, read into the store first; format says whose",
        "export": "a folder for the labels",
        "format": "rows (to train on) | argilla | label_studio",
        "kind": "of rows: preference (reward models, DPO) | ranked | unpaired (KTO)",
        "method": "of rows, from several labelers to one verdict: majority | dawid_skene | bradley_terry",
        "held_out": "of rows: the share of prompts in the test split; default 0.1",
        "names.question, prompt, responses": "of the import: its question, and the fields that ask and answer",
        "draws, seed": "of the bootstrap; the seed also of the split",
        "run_dir": "for agreement.json and agreement.html; default outputs/agreement/<time>",
    }
    return f"""rlhf-agreement: how far labelers agree, who is biased or worth a look, and the labels as files.

usage: rlhf-agreement [feedback.store=<URL>] [export=<folder>] [key=value ...]

examples
  rlhf-agreement
  rlhf-agreement export=outputs/labels method=dawid_skene      preferences.jsonl and preferences_test.jsonl
  rlhf-agreement export=outputs/labels kind=unpaired           rows for experiment=kto
  rlhf-agreement export=outputs/project format=label_studio    tasks and judgements for another tool
  rlhf-agreement import=project.json format=label_studio       and back

keys (key=value)
{key_table(keys)}

Measures raw agreement, Cohen's kappa of each two labelers, Krippendorff's alpha, agreement of labelers with themselves
and with check tasks, and what choices should not depend on: position, length, speed. Values have intervals of 95%."""


def collect_help(config_dir: str | None = None) -> str:
    """The page of rlhf-collect."""
    keys = {
        "prompts": "rows with a prompt, of any format that is read",
        "policies": "{name: run folder, Hugging Face folder, hub name, or http://host:port#model (vLLM), ...}",
        "responses": "instead of both: rows prompt + responses | chosen + rejected | prompt + completion",
        "feedback.store": "where tasks go, a URL of SQLAlchemy; default sqlite:///outputs/feedback.db",
        "samples_per_prompt, max_new_tokens, max_prompt_length, temperature, batch_size, seed": "of the sampling",
        "limit": "the first so many rows",
        "dtype, attn_implementation": "of the policies",
        "choice": "random pairs | uncertain: the smallest margin, or the largest disagreement of several reward models "
        "| best_worst: by the mean score | ranking: all responses to a prompt at once",
        "pairs, max_tasks": "at most so many per prompt, and in all",
        "overlap, overlap_share": "how many labelers answer the tasks of a share; one answers the others",
        "reask": "share of tasks that are asked again of the same labeler",
        "checks": "rows chosen + rejected with a known answer, which everybody gets",
        "reward.model, reward.function": "what scores, for uncertain and best_worst; reward.model=[a,b]: an ensemble",
        "reward.batch_size, reward.dtype, reward.attn_implementation": "of a reward model",
        "reward.timeout": "seconds that each call of a function may take",
        "explain": "true: say what would be sampled, and stop",
    }
    return f"""rlhf-collect: what policies answer to prompts, as tasks for people or a judge to compare.

usage: rlhf-collect prompts=<file> policies={{...}} [key=value ...]
       rlhf-collect responses=<file> [key=value ...]

examples
  rlhf-collect prompts=prompts.jsonl 'policies={{sft:outputs/demo/sft,ppo:outputs/demo/ppo}}'
  rlhf-collect prompts=prompts.jsonl 'policies={{ppo:outputs/demo/ppo}}' samples_per_prompt=4 choice=best_worst \\
    reward.model=outputs/demo/reward
  rlhf-collect prompts=prompts.jsonl 'policies={{served:"http://localhost:8000"}}'
  rlhf-collect responses=responses.jsonl checks=known.jsonl

keys (key=value)
{key_table(keys)}

Empty and identical responses are not compared. What was sampled is kept in the store: the same command again samples
nothing twice, and after an interruption goes on with what is missing."""


def label_help(config_dir: str | None = None) -> str:
    """The page of rlhf-label."""
    keys = {
        "labelers": "a list of names; default: those who are in the store already",
        "renew": "names of those who get a new link; the former one opens nothing any more",
        "feedback.store": "the store of rlhf-collect; default sqlite:///outputs/feedback.db",
        "guidelines": "a Markdown file that labelers read first; default: rlhf-lightning's own",
        "criteria, flags": "what may be scored from 1 to 5, and set",
        "host, port": "default 127.0.0.1, which this machine alone reaches, and 8000",
        "url": "what links begin with, where a proxy stands in front: https://label.example.org",
        "returns_after": "seconds after which a task that was opened and left goes to somebody else",
        "repeat_gap": "answers between a task and its repetition",
    }
    return f"""rlhf-label: prints a personal link for each labeler and serves the labelling page, until Ctrl-C.

usage: rlhf-label labelers=[ana,bo] [key=value ...]

examples
  rlhf-label labelers=[ana,bo]
  rlhf-label labelers=[ana,bo] guidelines=guidelines.md port=8080
  rlhf-label labelers=[ana,bo] host=0.0.0.0      other machines reach it, and labelers need their links
  rlhf-label renew=[bo] host=0.0.0.0             a new link for bo

keys (key=value)
{key_table(keys)}

On this machine alone a link holds a name. Beyond it a link holds a token, and is printed once: the store keeps a hash.
An answer that the page has taken is on the disk, whatever ends the server."""


def judge_help(config_dir: str | None = None) -> str:
    """The page of rlhf-judge."""
    keys = {
        "judge.model": "a run folder, a Hugging Face folder or a hub name; with judge.url, the model's name there",
        "judge.url": "an endpoint that speaks OpenAI's chat completions, such as that of vllm serve, up to /v1",
        "judge.by": "logprobs of the verdicts, both orders averaged | reasons: generated verdicts, parsed",
        "judge.constitution": "a YAML list of principles; one is drawn per question",
        "judge.cache": "a file for answers, by content; default outputs/judge_cache.db",
        "judge.key_env, per_minute, parallel, attempts, timeout": "of an endpoint: key, rate limit, retries",
        "judge.prompt_price, completion_price": "of a million tokens, to say what it cost",
        "judge.batch_size, dtype": "of a model in this process",
        "feedback.store, labeler": "whose tasks are judged, and the judge's name there",
        "data": "preferences to judge instead: how far does the judge agree with their labels?",
        "revise, revisions": "prompts with answers: critique and revision instead, rows for SFT",
        "tie_below, limit, seed": "ties, at most so many tasks or rows, what is drawn",
        "run_dir": "for summary.json and files; default outputs/judge/<time>",
    }
    return f"""rlhf-judge: a model as labeler (RLAIF), by principles.

usage: rlhf-judge judge.model=<folder or name> [key=value ...]

examples
  rlhf-judge judge.model=outputs/my/sft                                     the store's tasks
  rlhf-judge judge.url=http://localhost:8000/v1 judge.model=my-model judge.by=reasons
  rlhf-judge judge.model=outputs/my/sft data=preferences.jsonl limit=100    agreement with people's labels
  rlhf-judge judge.model=outputs/my/sft revise=answers.jsonl                critique and revision

keys (key=value)
{key_table(keys)}

Each pair is judged in both orders. What was answered is kept, so a run that was killed goes on where it was, and the
same command asks nothing twice."""
