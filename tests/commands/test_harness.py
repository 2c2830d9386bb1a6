"""Tasks of lm-eval: the seam with a fake package, and lm-eval itself where `make test-harness` has installed it."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_lightning.commands import evaluate
from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.errors import UserError
from rlhf_lightning.models import load_causal_lm, load_tokenizer
from tests.commands.runs import write_model
from tests.tiny import WORDS

PARTS = {
    "__init__": """
calls = []
def simple_evaluate(model, **settings):
    calls.append((model, settings))
    if settings["tasks"] == ["breaks"]:
        raise RuntimeError("two lines\\nof it")
    return {"results": {name: {"alias": name, "acc,none": len(calls) / 4, "acc_stderr,none": 0.125,
                               "match,strict": 1, "bad,none": "N/A"} for name in settings["tasks"]}}
""",
    "tasks": """
class TaskManager:
    def __init__(self, include_path=None):
        self.all_tasks = ["arc_easy", "breaks", *(["mine"] if include_path else [])]
        self.include_path = include_path
""",
    "models/__init__": "",
    "models/huggingface": """
class HFLM:
    def __init__(self, pretrained, tokenizer, batch_size):
        self.pretrained, self.tokenizer, self.batch_size = pretrained, tokenizer, batch_size
""",
}
POLICIES = "policies={a: run, b: model}"


def config(*words: str) -> dict[str, Any]:
    write_model(Path("run/model"))
    write_model(Path("model"))
    return compose_config("evaluate", [POLICIES, "run_dir=done", *words])


@pytest.fixture
def fake(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Install a package that answers in place of lm-eval."""
    for name, text in PARTS.items():
        file = empty_folder / "fakes/lm_eval" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.syspath_prepend(str(empty_folder / "fakes"))
    for name in [each for each in sys.modules if each.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    yield
    for name in [each for each in sys.modules if each.partition(".")[0] == "lm_eval"]:
        del sys.modules[name]


def test_results_are_in_the_summary_by_policy_task_and_metric(fake, capsys):
    Path("tasks").mkdir()
    Path("tasks/own.yaml").write_text("task: mine\ndoc_to_text: !function utils.text\n")
    evaluate.evaluate(config("harness=[arc_easy,tasks/own.yaml]", "batch_size=3", "seed=7"))
    summary = json.loads(Path("done/summary.json").read_text())
    assert summary["a.harness.arc_easy.acc"] == 0.25 and summary["b.harness.mine.acc"] == 0.5
    assert summary["a.harness.mine.acc_stderr"] == 0.125 and summary["a.harness.mine.match.strict"] == 1.0
    assert not [key for key in summary if "bad" in key or "alias" in key]
    assert "b: mine.acc 0.5000 (standard error 0.1250)" in capsys.readouterr().out
    import lm_eval

    assert [settings["tasks"] for _, settings in lm_eval.calls] == [["arc_easy", "mine"]] * 2
    model, settings = lm_eval.calls[0]
    assert settings["task_manager"].include_path == ["tasks"] and settings["fewshot_random_seed"] == 7
    assert model.batch_size == 3 and not model.pretrained.training
    assert model.tokenizer.get_vocab() == load_tokenizer("run").get_vocab()


@pytest.mark.slow
def test_tasks_stand_beside_a_comparison_of_samples(fake):
    Path("prompts.jsonl").write_text('{"prompt": "a b"}\n')
    words = ["baseline=a", "prompts=prompts.jsonl", "max_new_tokens=2", "harness=[arc_easy]"]
    evaluate.evaluate(config(*words))
    assert {"a.length", "b.harness.arc_easy.acc"} <= json.loads(Path("done/summary.json").read_text()).keys()


REFUSED = [
    (["harness=[arc_esy]"], "harness: lm-eval has no task arc_esy; did you mean arc_easy?"),
    (["harness=[gone.yaml]"], "harness: gone.yaml does not exist"),
    (["harness=[none.yaml]"], "harness: none.yaml names no task"),
    (["harness=[]"], "harness: found no task"),
    (["harness=[breaks]"], "harness: breaks failed"),
    (
        ["harness=[arc_easy]", "gold.function=json.dumps"],
        "gold.function: nothing is sampled without prompts",
    ),
    (["harness=[arc_easy]", "self_bleu=3"], "self_bleu: nothing is sampled"),
    (["harness=[arc_easy]", "embeddings.model=model"], "embeddings.model: nothing is sampled"),
    (["harness=[arc_easy]", "prompts=model"], "baseline"),
]


@pytest.mark.parametrize(("words", "line"), REFUSED, ids=[each[1][:40] for each in REFUSED])
def test_what_cannot_be_run_is_one_line(words, line, fake):
    Path("none.yaml").write_text("group: mine\n")
    with pytest.raises(UserError) as error:
        evaluate.evaluate(config(*words))
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


def test_without_the_package_one_line_says_how_to_install_it(empty_folder, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "lm_eval" else real(name))
    with pytest.raises(UserError, match=r"^harness: lm-eval is not installed; pip install 'rlhf-lightning\[harness\]'"):
        evaluate.evaluate(config("harness=[arc_easy]"))


@pytest.mark.slow
def test_lm_eval_itself_scores_a_local_task_of_local_rows(empty_folder):
    """Its accuracy is that of the log-probabilities of this package's model."""
    pytest.importorskip("lm_eval", reason="`make test-harness` installs lm-eval and runs this")
    rows = [{"question": WORDS[i], "answer": i % 2} for i in range(8)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("tasks").mkdir()
    Path("tasks/letters.yaml").write_text(
        "task: letters\ndataset_path: json\ndataset_kwargs: {data_files: {test: rows.jsonl}}\ntest_split: test\n"
        'output_type: multiple_choice\ndoc_to_text: "{{question}}"\ndoc_to_choice: ["x", "y z"]\n'
        "doc_to_target: answer\nmetric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    evaluate.evaluate(config("harness=[tasks/letters.yaml]"))
    summary = json.loads(Path("done/summary.json").read_text())
    model, tokenizer = load_causal_lm("model").eval(), load_tokenizer("model")
    right = []
    for row in rows:
        sums = []
        for choice in ("x", "y z"):
            prompt, whole = (tokenizer(text)["input_ids"] for text in (row["question"], f"{row['question']} {choice}"))
            with torch.no_grad():
                logprobs = model(torch.tensor([whole])).logits[0].log_softmax(dim=-1)
            sums.append(sum(float(logprobs[i - 1, whole[i]]) for i in range(len(prompt), len(whole))))
        right.append(float(sums[row["answer"]] > sums[1 - row["answer"]]))
    assert summary["a.harness.letters.acc"] == summary["b.harness.letters.acc"] == sum(right) / len(right)
    assert 0 < summary["a.harness.letters.acc_stderr"] < 1
