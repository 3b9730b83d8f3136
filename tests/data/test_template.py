from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fastft.data.example import Example
from fastft.data.template import TEMPLATES, ChatTemplate, load_template
from fastft.errors import DataError, RecipeError, Where

HERE = Where("recipe.toml", 7)
Conversation = Callable[..., Example]

# Each format as its publisher documents it: a system text, one question and one answer.
EXPECTED = {
    "alpaca": "<s>Be kind.\n\n### Instruction:\nHi\n\n### Response:\nHello</s>",
    "baichuan2": "Be kind.<reserved_106>Hi<reserved_107>Hello</s>",
    "chatml": (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello<|im_end|>\n"
    ),
    "deepseek-r1-distill": "<s>Be kind.<｜User｜>Hi<｜Assistant｜><think>\n\n</think>\n\nHello</s>",
    "gemma-4": (
        "<s><|turn>system\nBe kind.<turn|>\n<|turn>user\nHi<turn|>\n"
        "<|turn>model\n<|channel>thought\n<channel|>Hello<turn|>\n"
    ),
    "gpt-oss": (
        "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\n"
        "Knowledge cutoff: 2024-06\nCurrent date: 2024-07-26\n\nReasoning: medium\n\n"
        "# Valid channels: analysis, commentary, final. Channel must be included for every message.<|end|>"
        "<|start|>developer<|message|># Instructions\n\nBe kind.\n\n<|end|><|start|>user<|message|>Hi<|end|>"
        "<|start|>assistant<|channel|>final<|message|>Hello<|return|>"
    ),
    "granite": (
        "<|start_of_role|>system<|end_of_role|>Be kind.<|end_of_text|>\n"
        "<|start_of_role|>user<|end_of_role|>Hi<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>Hello<|end_of_text|>\n"
    ),
    "mistral-nemo": "<s>[INST]Be kind.\n\nHi[/INST]Hello</s>",
    "mistral-v7": "<s>[SYSTEM_PROMPT]Be kind.[/SYSTEM_PROMPT][INST]Hi[/INST]Hello</s>",
    "phi-4-mini": "<|system|>Be kind.<|end|><|user|>Hi<|end|><|assistant|>Hello<|end|></s>",
    "qwen3.5": (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\nHello<|im_end|>\n"
    ),
    "smollm3": (
        "<|im_start|>system\n## Metadata\n\nKnowledge Cutoff Date: June 2025\nToday Date: 26 July 2024\n"
        "Reasoning Mode: /think\n\n## Custom Instructions\n\nBe kind.\n\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
    ),
    "gemma": "<s><start_of_turn>user\nBe kind.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n",
    "llama-3": (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
    ),
    "llama-3.1": (
        "<s><|start_header_id|>system<|end_header_id|>\n\n"
        "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\nBe kind.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
    ),
    "mistral": "<s>[INST] Be kind.\n\nHi[/INST] Hello</s>",
    "phi": "<|system|>\nBe kind.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHello<|end|>\n",
    "phi-4": (
        "<|im_start|>system<|im_sep|>Be kind.<|im_end|><|im_start|>user<|im_sep|>Hi<|im_end|>"
        "<|im_start|>assistant<|im_sep|>Hello<|im_end|>"
    ),
    "qwen2.5": (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello<|im_end|>\n"
    ),
    "qwen3": (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\nHello<|im_end|>\n"
    ),
    "vicuna": "<s>Be kind. USER: Hi ASSISTANT: Hello</s>",
    "zephyr": "<|system|>\nBe kind.</s>\n<|user|>\nHi</s>\n<|assistant|>\nHello</s>\n",
}

EXPECTED |= dict.fromkeys(("llama-3.2", "llama-3.3"), EXPECTED["llama-3.1"])


def test_every_template_that_is_brought_has_its_format_written_down() -> None:
    assert sorted(EXPECTED) == sorted(TEMPLATES)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_known_template_writes_the_published_format(name: str, conversation: Conversation) -> None:
    template = load_template(name, Path(), None, HERE)
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    messages = conversation("Hi", "Hello", system="Be kind.").messages
    assert template.render(messages, tokens, where=HERE) == EXPECTED[name]


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_the_generation_prompt_leads_to_the_answer(name: str, conversation: Conversation) -> None:
    template = load_template(name, Path(), None, HERE)
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    messages = conversation("Hi", "Hello", system="Be kind.").messages
    prompt = template.render(messages[:2], tokens, where=HERE, add_generation_prompt=True)
    assert EXPECTED[name].startswith(prompt)
    assert len(prompt) > EXPECTED[name].index("Hi")


def test_a_template_cannot_leave_the_sandbox(conversation: Conversation) -> None:
    template = ChatTemplate("evil.jinja", "{{ messages.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(DataError, match="unsafe"):
        template.render(conversation("Hi", "Hello").messages, {}, where=HERE)


def test_a_template_cannot_change_the_messages(conversation: Conversation) -> None:
    template = ChatTemplate("evil.jinja", "{{ messages.append(1) }}")
    with pytest.raises(DataError, match="unsafe"):
        template.render(conversation("Hi", "Hello").messages, {}, where=HERE)


def test_the_reason_of_a_template_that_refuses_is_quoted(conversation: Conversation) -> None:
    template = ChatTemplate("x.jinja", "{{ raise_exception('only one turn, please') }}")
    with pytest.raises(DataError, match="only one turn, please"):
        template.render(conversation("Hi", "Hello").messages, {}, where=HERE)


def test_tojson_leaves_html_and_other_alphabets_alone(conversation: Conversation) -> None:
    template = ChatTemplate("x.jinja", "{{ messages[0].content | tojson }}")
    assert template.render(conversation("<b>ü</b>", "x").messages, {}, where=HERE) == '"<b>ü</b>"'


def test_generation_marks_give_the_spans_of_the_answers(conversation: Conversation) -> None:
    source = (
        "{% for m in messages %}[{% if m.role == 'assistant' %}{% generation %}{{ m.content }}]{% endgeneration %}"
        "{% else %}{{ m.content }}]{% endif %}{% endfor %}"
    )
    text, spans = ChatTemplate("x.jinja", source).render_marked(conversation("a", "b", "c", "d"), {})
    assert text == "[a][b][c][d]"
    assert [text[start:end] for start, end in spans] == ["b]", "d]"]


def test_a_generation_mark_inside_a_macro_is_refused(conversation: Conversation) -> None:
    source = (
        "{% macro say(text) %}..{% generation %}{{ text }}{% endgeneration %}{% endmacro %}"
        "{% for m in messages %}{{ say(m.content) }}{% endfor %}"
    )
    with pytest.raises(DataError, match="move it out of macros"):
        ChatTemplate("x.jinja", source).render_marked(conversation("a", "b"), {})


def test_an_unknown_template_names_the_nearest_one() -> None:
    with pytest.raises(RecipeError, match=r'unknown chat template \(got "lama-3.1"\); did you mean "llama-3.1"\?'):
        load_template("lama-3.1", Path(), None, HERE)


def test_a_model_without_a_template_lists_the_known_ones() -> None:
    with pytest.raises(RecipeError, match=r"no chat template of its own.*chatml"):
        load_template("model", Path(), None, HERE)


def test_a_template_file_must_be_there_and_valid(tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text("{% if %}")
    with pytest.raises(RecipeError, match=r"no such file .*did you mean mine\.jinja"):
        load_template("mien.jinja", tmp_path, None, HERE)
    with pytest.raises(RecipeError, match=r"mine\.jinja:1: data\.chat_template: .*not valid Jinja"):
        load_template("mine.jinja", tmp_path, None, HERE)


def test_blocks_leave_no_white_space_behind(conversation: Conversation) -> None:
    template = ChatTemplate("x.jinja", "{% if true %}\nx\n    {% endif %}\ny")
    assert template.render(conversation("Hi", "Hello").messages, {}, where=HERE) == "x\ny"
