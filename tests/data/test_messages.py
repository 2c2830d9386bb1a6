"""What a row contains besides its words: tools, template settings, message fields."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from rlhf_lightning.data import PreferenceDataModule, PromptDataModule, SFTDataModule, render_prompt
from rlhf_lightning.data.messages import checked_text
from rlhf_lightning.data.templates import render_completion
from rlhf_lightning.errors import UserError
from tests.data.conftest import PLAIN_TEMPLATE, assistant, build_tokenizer, user
from tests.subwords import subword_tokenizer

TOOL = {"type": "function", "function": {"name": "clock", "parameters": {"zone": {"default": None}}}}
CALL = {"type": "function", "function": {"name": "clock", "arguments": {"zone": "utc"}}}
TOOLS_TEMPLATE = (
    "{% if tools %}tools:{% for tool in tools %} {{ tool | tojson }}{% endfor %}{{ '\\n' }}{% endif %}"
    "{% if think is defined and not think %}quiet\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}"
    "{% if m.tool_calls and CONDITION %}{% for call in m.tool_calls %}"
    "{{ call.function.name }} {{ call.function.arguments | tojson }}{% endfor %}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


# How templates test for content before they write a call: as in Qwen 2.5, only for absent content, and only for empty
# content.
CONDITIONS = ["not m.content", "m.content is not defined", "m.content == ''"]


@pytest.fixture(params=CONDITIONS)
def tool_tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    tokenizer = subword_tokenizer("byte_level")
    tokenizer.chat_template = TOOLS_TEMPLATE.replace("CONDITION", request.param)
    return tokenizer


def shown(tokenizer: Any, row: dict[str, Any], kind: type = SFTDataModule, **options: Any) -> str:
    """Return all of the row's first sequence as text."""
    data = kind(tokenizer, [row], **options)
    data.setup()
    return str(tokenizer.decode(data.train_rows[0].sequences()[0]))


@pytest.mark.parametrize("content", [None, "", "absent"])
@pytest.mark.parametrize("arguments", [{"zone": "utc"}, '{"zone": "utc"}'])
def test_tools_and_calls_are_rendered_as_the_template_does(
    tool_tokenizer: PreTrainedTokenizerFast, content: str | None, arguments: Any
) -> None:
    call = {**CALL, "function": {"name": "clock", "arguments": arguments}}
    said = {"role": "assistant", "tool_calls": [call]} | ({} if content == "absent" else {"content": content})
    row = {"prompt": [user("time?")], "completion": [said], "tools": [TOOL]}
    wanted = (
        f"tools: {json.dumps(TOOL)}\n<|im_start|>user\ntime?<|im_end|>\n<|im_start|>assistant\n"
        'clock {"zone": "utc"}<|im_end|>\n'
    )
    for tools in ([TOOL], json.dumps([TOOL]), [json.dumps(TOOL)]):
        assert shown(tool_tokenizer, {**row, "tools": tools}) == wanted + "</s>"
    pair = {"prompt": [user("time?")], "chosen": [said], "rejected": [assistant("no")], "tools": [TOOL]}
    assert shown(tool_tokenizer, pair, PreferenceDataModule) == wanted + "</s>"
    messages = {"messages": [user("time?"), said], "tools": [TOOL]}
    assert shown(tool_tokenizer, messages) == shown(tool_tokenizer, messages, loss_on="all") == wanted + "</s>"


@pytest.mark.parametrize("arguments", [{"zone": "utc"}, '{"zone":  "utc"}'])
def test_arguments_are_text_for_a_template_that_wants_text(
    tool_tokenizer: PreTrainedTokenizerFast, arguments: Any
) -> None:
    tool_tokenizer.chat_template = tool_tokenizer.chat_template.replace("arguments | tojson", "arguments + ''")
    said = {"role": "assistant", "tool_calls": [{"function": {"name": "clock", "arguments": arguments}}]}
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    assert f"clock {text}<|im_end|>" in shown(tool_tokenizer, {"prompt": [user("a")], "completion": [said]})


def test_settings_of_the_template_change_prompts(tool_tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [
        {"prompt": [user("a")], "chat_template_kwargs": {"think": False}},
        {"prompt": [user("a")], "tools": [], "chat_template_kwargs": None},
        {"prompt": [user("a")], "tools": [TOOL]},
    ]
    data = PromptDataModule(tool_tokenizer, rows)
    data.setup()
    quiet, plain, tools = (row.text for row in data.train_prompts)
    assert quiet == "quiet\n" + plain
    assert tools == f"tools: {json.dumps(TOOL)}\n" + plain
    assert data.train_prompts[2].columns["tools"] == [TOOL]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "tools": [TOOL]}, "tools: only a chat template renders them, and the prompt is plain text"),
        ({"prompt": [user("a")], "tools": "clock"}, "tools: not JSON"),
        ({"prompt": [user("a")], "tools": {"clock": 1}}, "tools: expected a list of JSON schemas, found dict"),
        ({"prompt": [user("a")], "chat_template_kwargs": {"thinks": 1}}, "chat_template_kwargs: thinks: .* not read"),
        ({"prompt": [user("a")], "chat_template_kwargs": {"tokenize": 1}}, "tokenize is not a setting of a template"),
        ({"prompt": [user("a")], "chat_template_kwargs": 3}, "chat_template_kwargs: expected an object, found int"),
        ({"prompt": "a", "system": "be kind"}, "column system: it would change what the prompt asks"),
        ({"prompt": [user("a")], "images": ["a.png"]}, "column images: it would change what the prompt asks"),
        ({"prompt": [{**user("a"), "name": "Tom"}]}, "a message has the field 'name', which the chat template .* not"),
        ({"prompt": [{**user("a"), "content": "b", "content_type": "c"}]}, "a message has the field 'content_type'"),
        ({"prompt": [{**user("a"), "weight": 0}]}, "a message has the field 'weight'"),
        ({"prompt": [{"role": "user", "content": [{"type": "image"}]}]}, "part .* is of type image; only text"),
        ({"prompt": [{"role": "user", "content": None}]}, "prompt: the content of a message is null; expected"),
        ({"prompt": []}, "prompt: the list is empty"),
        ({"prompt": "a\ud800"}, "prompt: character 1 is half of a surrogate pair"),
    ],
)
def test_what_would_be_left_out_is_refused_by_name(
    tool_tokenizer: PreTrainedTokenizerFast, row: dict[str, Any], message: str
) -> None:
    for data in (
        PromptDataModule(tool_tokenizer, [row]),
        SFTDataModule(tool_tokenizer, [{**row, "completion": "b"}]),
        PreferenceDataModule(tool_tokenizer, [{**row, "chosen": "b", "rejected": "c"}]),
    ):
        with pytest.raises(UserError, match=rf"row 1: .*{message}"):
            data.setup()


def test_fields_that_the_template_reads_are_rendered(tool_tokenizer: PreTrainedTokenizerFast) -> None:
    said = {**assistant("b"), "reasoning_content": "why", "tool_call_id": "7", "thinking": ""}
    told = [user("a"), {"role": "tool", "name": "clock", "content": "b"}]
    assert "name" not in render_prompt(tool_tokenizer, told)
    assert "(why)b<|im_end|>" in shown(tool_tokenizer, {"prompt": [user("a")], "completion": [said]})


def test_parts_of_text_are_put_together(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]
    (message,) = checked_text("prompt", [{"role": "user", "content": parts}])
    assert render_prompt(chat_tokenizer, [message]) == render_prompt(chat_tokenizer, [user("a b")])


def test_a_role_that_the_template_leaves_out_is_refused() -> None:
    deaf = PLAIN_TEMPLATE.replace(
        "{{ m['role'] }} : {{ m['content'] }}",
        "{% if m['role'] == 'user' %}user : "
        "{{ m['content'] }}{% elif m['role'] == 'assistant' %}{{ m['content'] }}{% endif %}",
    )
    tokenizer = build_tokenizer(template=deaf)
    for role in ("human", "system"):
        with pytest.raises(UserError, match=f"leaves out messages of the role '{role}'"):
            render_prompt(tokenizer, [{"role": role, "content": "yes"}, user("b")])
    with pytest.raises(UserError, match="leaves out messages of the role 'gpt'"):
        render_completion(tokenizer, [user("a")], [{"role": "gpt", "content": "no"}])


def test_a_tool_that_the_template_leaves_out_is_refused(tool_tokenizer: PreTrainedTokenizerFast) -> None:
    tool_tokenizer.chat_template = tool_tokenizer.chat_template.replace("tool | tojson", "tool.name")
    with pytest.raises(UserError, match="leaves out the tool 'clock'"):
        render_prompt(tool_tokenizer, [user("a")], {"tools": [TOOL]})


def test_a_call_that_the_template_leaves_out_is_refused(tool_tokenizer: PreTrainedTokenizerFast) -> None:
    tool_tokenizer.chat_template = TOOLS_TEMPLATE.replace(
        "CONDITION", "m.content is none"
    )  # transformers passes no empty ones
    said = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    with pytest.raises(UserError, match=r"the field 'tool_calls', which the chat template of .* does not read"):
        render_prompt(tool_tokenizer, [user("a"), said, user("b")], {"tools": [TOOL]})


def test_nulls_that_a_columnar_file_fills_in_are_not_fields(
    tool_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    import datasets

    rows = [
        {"messages": [user("a"), assistant("b")]},
        {"messages": [user("a"), {"role": "assistant", "content": "", "tool_calls": [CALL]}], "tools": [TOOL]},
    ]
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "rows.parquet"))
    data = SFTDataModule(tool_tokenizer, tmp_path / "rows.parquet")
    data.setup()
    assert "clock" in tool_tokenizer.decode(data.train_rows[1].input_ids)
    assert data.report["train"].kept == 2


QWEN_TRAINING = (  # the white space after the end of turn is inside the block
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant"
    "{% generation %}\n{{ m.content }}<|im_end|>\n{% endgeneration %}"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("eos", ["<|im_end|>", "</s>"])
def test_the_last_turn_ends_with_one_eos_also_if_white_space_after_it_is_marked(eos: str) -> None:
    tokenizer = subword_tokenizer("byte_level")
    tokenizer.chat_template, tokenizer.eos_token = QWEN_TRAINING, eos
    data = SFTDataModule(tokenizer, [{"messages": [user("a"), assistant("b")]}], loss_on="assistant")
    data.setup()
    learned = tokenizer.decode([token for token in data.train_rows[0].labels if token >= 0])
    assert learned == ("b<|im_end|>" if eos == "<|im_end|>" else "b<|im_end|>\n</s>")
