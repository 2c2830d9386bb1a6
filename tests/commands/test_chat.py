from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_lightning.commands import chat, conversation
from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.commands.conversation import Conversation
from rlhf_lightning.data import PromptRow, tokenize_prompt
from rlhf_lightning.errors import UserError
from rlhf_lightning.evaluation.sampling import BestOf, sample_responses
from rlhf_lightning.models import load_causal_lm, load_tokenizer
from rlhf_lightning.rollout import SamplingSettings
from tests.commands.runs import write_adapter, write_model
from tests.programs import ENVIRONMENT, program
from tests.subwords import subword_tokenizer
from tests.tiny import tiny_model

ROOT = Path(__file__).resolve().parents[2]


def talk(lines: list[str], *overrides: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program("rlhf-chat"), *overrides],
        input="\n".join(lines),
        cwd=folder,
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def answer(path: Path, prompt: str, n: int = 8) -> str:
    """Return plain transformers' greedy answer to a plain prompt."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    output = model.generate(ids, max_new_tokens=n, do_sample=False)[0, ids.shape[1] :]
    return tokenizer.decode(output, skip_special_tokens=True)


def test_piped_lines_are_answered_one_by_one_without_a_word_from_the_libraries(empty_folder):
    model = write_model(empty_folder / "run/model")
    lines = ["a b c", "", "/rset", "z y", "/exit", "never asked"]
    done = talk(lines, "model=run", "temperature=0", "max_new_tokens=8", folder=empty_folder)
    assert done.stderr == ""
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        answer(model, "a b c"),
        "/rset: no such command; allowed: /reset, /exit; did you mean /reset?",
        answer(model, "z y"),
    ]


def test_the_end_of_the_input_leaves(empty_folder, monkeypatch, capsys):
    write_model(empty_folder / "model")
    with (empty_folder / "nothing").open("w+") as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        chat.chat(compose_config("chat", ["model=model"]))
    assert capsys.readouterr().out == ""


@pytest.fixture
def terminal(monkeypatch):
    """Make standard input look like a terminal."""
    overrides = ["model=model", "temperature=0", "max_new_tokens=8"]
    monkeypatch.setattr(sys, "argv", ["rlhf-chat", *overrides])
    monkeypatch.setattr("rlhf_lightning.commands.command_line.quieten", lambda: None)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)


@pytest.mark.usefixtures("terminal")
def test_ctrl_c_at_the_prompt_leaves_with_one_line(empty_folder, monkeypatch, capsys):
    write_model(empty_folder / "model")
    monkeypatch.setattr("builtins.input", lambda prompt: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(SystemExit) as end:
        chat.main()
    assert end.value.code == 130
    said = capsys.readouterr()
    assert said.err.splitlines()[-1] == "stopped by SIGINT"
    assert said.out.endswith("\n\n")  # the line does not begin right after the prompt


@pytest.mark.usefixtures("terminal")
def test_ctrl_c_ends_an_answer_and_the_conversation_goes_on(empty_folder, monkeypatch, capsys):
    write_model(empty_folder / "model")
    lines = iter(["a b c", "a b c", "/exit"])
    interrupts = iter([True, False])
    whole = Conversation.answer

    def interrupted(self, text):
        if next(interrupts):
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("the answer went on")
        return whole(self, text)

    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    monkeypatch.setattr(Conversation, "answer", interrupted)
    chat.main()
    said = capsys.readouterr()
    assert "stopped" not in said.err
    assert said.out.splitlines()[1:] == ["", answer(Path("model"), "a b c")]


def test_two_models_answer_the_same_line_each_under_its_name(empty_folder, monkeypatch, capsys):
    write_model(empty_folder / "base")
    write_adapter(empty_folder / "lora/model", Path("base"))
    lines = iter(["a b c", "/reset", "/exit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    overrides = ["model=lora", "compare_with=base", "temperature=0", "max_new_tokens=8"]
    chat.chat(compose_config("chat", overrides))
    first, second = capsys.readouterr().out.splitlines()
    assert second == f"[base] {answer(Path('base'), 'a b c')}"
    assert first.startswith("[lora] ") and first.removeprefix("[lora] ") != second.removeprefix("[base] ")


def test_what_is_printed_while_it_is_drawn_is_the_answer(empty_folder, capsys):
    conversation = Conversation(str(write_model(empty_folder / "model")), max_new_tokens=12)
    said = conversation.answer("a b")
    assert said
    assert capsys.readouterr().out.strip() == said


def test_greedy_answers_are_those_of_the_evaluation(empty_folder):
    path = write_model(empty_folder / "model", chat=True)
    model, tokenizer = load_causal_lm(path), load_tokenizer(path)
    ids = tokenize_prompt(tokenizer, [{"role": "user", "content": "a b"}])
    settings = SamplingSettings(max_new_tokens=9, temperature=0.0)
    (wanted,) = sample_responses(model.eval(), tokenizer, [PromptRow(ids, "", {})], settings, batch_size=1, seed=0)
    assert Conversation(str(path), temperature=0, max_new_tokens=9).answer("a b") == wanted.text.strip()


def test_with_a_chat_template_the_conversation_is_the_prompt_until_it_is_reset(empty_folder, monkeypatch):
    conversation = Conversation(
        str(write_model(empty_folder / "model", chat=True)), system="s", temperature=0, max_new_tokens=5
    )
    prompts: list[str] = []
    generate = conversation.model.generate

    def spy(ids: torch.Tensor, **kwargs: object) -> torch.Tensor:
        prompts.append(conversation.tokenizer.decode(ids[0]))
        return generate(ids, **kwargs)

    monkeypatch.setattr(conversation.model, "generate", spy)
    first = conversation.answer("b")
    second = conversation.answer("c")
    conversation.reset()
    assert conversation.answer("b") == first
    assert prompts == ["s s u b a", f"s s u b a {first} <eos> u c a", "s s u b a"]
    assert second


def test_without_a_chat_template_each_line_is_completed_alone(empty_folder):
    path = write_model(empty_folder / "model")
    conversation = Conversation(str(path), temperature=0, max_new_tokens=8)
    conversation.answer("a b c")
    assert conversation.answer("z y") == answer(path, "z y")


def test_a_seed_gives_the_same_conversation_and_another_seed_another(empty_folder):
    path = str(write_model(empty_folder / "model"))
    talks = []
    for seed in (1, 1, 2):
        conversation = Conversation(path, seed=seed, max_new_tokens=12)
        talks.append([conversation.answer(line) for line in ("a", "a")])
    assert talks[0] == talks[1] != talks[2]
    assert talks[0][0] != talks[0][1]  # every turn has its own draws


def test_filters_of_the_models_own_generation_config_do_not_narrow_the_draws(empty_folder):
    path = write_model(empty_folder / "model")
    wanted = Conversation(str(path), seed=1, max_new_tokens=12).answer("a")
    model = AutoModelForCausalLM.from_pretrained(path)
    model.generation_config.update(do_sample=True, top_k=1, top_p=0.1, repetition_penalty=5.0, temperature=0.1)
    model.save_pretrained(path)
    assert Conversation(str(path), seed=1, max_new_tokens=12).answer("a") == wanted


@pytest.mark.parametrize("max_new_tokens", [20, 10_000])
def test_a_long_conversation_leaves_room_for_an_answer_within_the_models_positions(
    max_new_tokens, empty_folder, monkeypatch
):
    conversation = Conversation(str(write_model(empty_folder / "model", chat=True)), max_new_tokens=max_new_tokens)
    lengths: list[int] = []
    generate = conversation.model.generate

    def spy(ids: torch.Tensor, **kwargs: object) -> torch.Tensor:
        output = generate(ids, **kwargs)
        lengths.extend([ids.shape[1], output.shape[1]])
        return output

    monkeypatch.setattr(conversation.model, "generate", spy)
    for _ in range(4):
        conversation.answer("a " * 40)
    assert lengths[-2] == (108 if max_new_tokens == 20 else 64)
    assert lengths[-2] < lengths[-1] <= 128


def test_a_system_message_needs_a_chat_template(empty_folder):
    with pytest.raises(UserError, match=r"^system: the tokenizer of .* has no chat template"):
        Conversation(str(write_model(empty_folder / "model")), system="be kind")


def test_models_that_cannot_talk_are_one_line(empty_folder):
    write_model(empty_folder / "base")
    write_model(empty_folder / "reward/model", classifier=True)
    write_adapter(empty_folder / "reward_lora/model", Path("base"), classifier=True)
    for name in ("reward", "reward/model", "reward_lora"):
        with pytest.raises(UserError, match=rf"^model: {name} is a reward model, which scores answers"):
            chat.check(compose_config("chat", [f"model={name}"]))
    with pytest.raises(UserError, match=r"^compare_with: no/such/model does not exist"):
        chat.check(compose_config("chat", ["model=base", "compare_with=no/such/model"]))
    (empty_folder / "empty").mkdir()
    with pytest.raises(UserError, match=r"^model: no model in empty"):
        chat.check(compose_config("chat", ["model=empty"]))


def test_a_model_that_is_neither_here_nor_on_the_hub_is_one_line(empty_folder):
    with pytest.raises(
        UserError, match=r"^model: the tokenizer of no-such-model-anywhere cannot be loaded: "
    ) as caught:
        chat.chat(compose_config("chat", ["model=no-such-model-anywhere"]))
    assert "\n" not in str(caught.value)


def test_an_answer_is_the_text_that_continues_the_prompt_special_tokens_included(empty_folder, monkeypatch, capsys):
    tokenizer = subword_tokenizer("prepend")
    tiny_model(vocab_size=len(tokenizer)).save_pretrained(empty_folder / "model")
    tokenizer.save_pretrained(empty_folder / "model")
    conversation = Conversation(str(empty_folder / "model"))
    drawn = tokenizer.convert_tokens_to_ids(["▁", "w", "ere", "<|im_start|>", "<0xE2>", "<0x82>", "<0xAC>", "</s>"])

    def generate(ids: torch.Tensor, streamer: Any, **kwargs: object) -> torch.Tensor:
        streamer.put(ids)
        for token in drawn:
            streamer.put(torch.tensor([token]))
        streamer.end()
        return torch.cat([ids, torch.tensor([drawn])], dim=1)

    monkeypatch.setattr(conversation.model, "generate", generate)
    assert conversation.answer("Tom") == "were<|im_start|>€"
    assert capsys.readouterr().out == "were<|im_start|>€\n"


def test_chat_tokens_that_the_model_has_no_embedding_of_are_one_line(empty_folder):
    path = write_model(empty_folder / "model", chat=True)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    tokenizer.chat_template = "<|user|>" + tokenizer.chat_template
    tokenizer.save_pretrained(path)
    with pytest.raises(UserError, match=r"^model: the tokenizer's token '<\|user\|>' has the id"):
        Conversation(str(path))


def test_an_answer_cannot_steer_the_terminal(monkeypatch, capsys):
    said = "\x1b]0;title\x07 \x1b[31mred\x9b2J\u202e"
    monkeypatch.setattr(conversation, "_text", lambda tokenizer, prompt, answer, ends: said[: len(answer)])
    printer = conversation.AnswerPrinter(None, [], [])  # type: ignore[arg-type]
    for token in torch.zeros(len(said) + 1, dtype=torch.long):
        printer.put(token)
    printer.end()
    assert capsys.readouterr().out == r"\x1b]0;title\x07 \x1b[31mred\x9b2J\u202e" + "\n"


@pytest.mark.parametrize("template", [False, True])
def test_the_best_of_n_answers_is_shown_and_remembered(template, empty_folder, capsys):
    seen: list[tuple[list[str], list[str], Any]] = []

    def score(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
        seen.append((prompts, responses, columns))
        return [float(len(response)) for response in responses]

    score.reads_tokens = True
    write_model(empty_folder / "model", chat=template)
    talking = Conversation("model", max_new_tokens=24, best=BestOf(5, score))
    said = talking.answer("a b c")
    prompts, responses, columns = seen[0]
    assert len(responses) == 5 and len(set(responses)) > 1
    assert said == max(responses, key=len).strip() and capsys.readouterr().out == f"{said}\n"
    assert prompts == ["u a b c a " if template else "a b c"] * 5
    assert ("messages" in columns) == template and any(columns["ended"]) and not all(columns["ended"])
    for tokens, ended in zip(columns["sampled"].responses, columns["ended"], strict=True):
        assert (tokens[-1] in talking.ends) == ended and not set(tokens[:-1]) & {*talking.ends}
    assert talking.messages[-1] == {"role": "assistant", "content": said}
    assert talking.answer("a b c") != said or template is False
    assert len(seen) == 2


def test_chat_says_how_far_the_best_of_n_is_from_the_model(empty_folder, monkeypatch, capsys):
    write_model(empty_folder / "model")
    (empty_folder / "lengths.py").write_text(
        "def score(prompts, responses, **columns):\n    return [float(len(each)) for each in responses]\n"
    )
    (empty_folder / "lines").write_text("a b\n")
    monkeypatch.setattr(sys, "stdin", (empty_folder / "lines").open())
    chat.chat(compose_config("chat", ["model=model", "best_of=3", "reward.function=lengths.score", "max_new_tokens=4"]))
    bound, answered = capsys.readouterr().out.splitlines()
    assert bound.startswith("best of 3: at most 0.432 nats per response") and answered


@pytest.mark.parametrize("line", ["caf\xe9".encode("latin-1"), b"\xff\xfe"])
@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_a_line_that_is_not_utf_8_is_named(line, errors, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hi\n" + line + b"\n"), "utf-8", errors))
    with pytest.raises(UserError, match=r"^line \d of the input is not UTF-8; convert it to UTF-8$"):
        list(chat._lines())


def test_a_line_without_positions_is_refused_and_a_long_one_loses_nothing(empty_folder, monkeypatch, capsys):
    model = write_model(empty_folder / "model")
    found = Conversation("model", temperature=0.0, max_new_tokens=8)
    limit = found.model.config.max_position_embeddings
    longest = " ".join(["a"] * (limit - 2))
    assert found.answer(longest) == answer(model, longest, limit - len(found.tokenizer(longest).input_ids))
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"\na b\n{'a ' * limit}\n"))
    with pytest.raises(
        UserError, match=rf"^line 3 of the input: found {limit} tokens, and model has {limit} positions"
    ):
        chat.chat(compose_config("chat", ["model=model", "max_new_tokens=2"]))
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{'a ' * limit}\na b\n"))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    capsys.readouterr()
    chat.chat(compose_config("chat", ["model=model", "max_new_tokens=2", "temperature=0"]))
    shown = capsys.readouterr().out.replace("> ", "").splitlines()[1:]
    assert shown[0].startswith(f"found {limit} tokens, and model has") and shown[1] == answer(model, "a b", 2)
