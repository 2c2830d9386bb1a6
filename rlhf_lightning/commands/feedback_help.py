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
