"""fastft's Llama 3.1 rows against the encoder that Meta publishes (package llama-models, for development only)."""

from __future__ import annotations

import random
from importlib import import_module, util
from pathlib import Path
from typing import Any

import pytest

from fastft.data.encode import encode
from fastft.data.example import Example, Message
from fastft.data.render import make_renderer, render_prompt
from fastft.data.template import load_template
from fastft.data.tokenizer import TokenizerFacts, make_facts
from fastft.errors import Where

HERE = Where("rows.jsonl", 1)
needs_reference = pytest.mark.skipif(
    util.find_spec("llama_models") is None or util.find_spec("tiktoken") is None,
    reason="the reference encoder is not installed: pip install --no-deps llama-models tiktoken",
)
# Apart from these, which the stock 3.1 template puts into the system turn and Meta's encoder leaves to its caller.
DATE_LINES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
SAYINGS = (
    "Hello!", "What is 2+2?", "It's 4.", "Größe: 12,5 m²", "你好，世界", "def f(x):\n    return x ** 2\n\nprint(f(3))",
    "😀👩‍👩‍👧",
    "1234567890 1,000,000.00", "tabs\tand  double  spaces", "line\r\nends", "don't we'll I'M", "https://example.org/a?b=c&d",
    "| a | b |\n|---|---|\n| 1 | 2 |", "Привет! Как дела?", "שלום", "a" * 300, "<b>not</b> <|a token|> [INST]",
    "\\n \\t {}", "…—„“",
    '{"type": "late", "urgent": true}',
)  # fmt: skip


def dialog(number: int) -> tuple[Message, ...]:
    """One of fifty dialogs: one to four exchanges, with and without a system text."""
    source = random.Random(number)  # noqa: S311 -- the same dialogs each time
    roles = ("user", "assistant") * source.randint(1, 4)
    lead = [Message("system", source.choice(SAYINGS))] if number % 2 else [Message("system", "")]
    return (*lead, *(Message(role, " ".join(source.choices(SAYINGS, k=source.randint(1, 3)))) for role in roles))


@pytest.fixture(scope="module")
def reference() -> Any:
    tokenizer = import_module("llama_models.llama3.tokenizer")
    return import_module("llama_models.llama3.chat_format").ChatFormat(tokenizer.Tokenizer.get_instance())


@pytest.fixture(scope="module")
def llama(reference: Any) -> TokenizerFacts:
    """The same vocabulary as Hugging Face publishes it, converted from Meta's file."""
    from transformers.convert_slow_tokenizer import TikTokenConverter

    module = import_module("llama_models.llama3.tokenizer")
    file = Path(module.__file__).with_name("tokenizer.model")
    special = sorted(reference.tokenizer.special_tokens, key=reference.tokenizer.special_tokens.get)
    converter = TikTokenConverter(str(file), module.Tokenizer.pat_str, extra_special_tokens=special)
    return make_facts(converter.converted(), bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")


@needs_reference
@pytest.mark.slow
def test_fifty_dialogs_have_the_ids_of_the_reference_encoder(reference: Any, llama: TokenizerFacts) -> None:
    """Only Meta's own tokenizer and chat format can say that Llama 3.1 gets the tokens that it was trained with."""
    datatypes = import_module("llama_models.datatypes")
    renderer = make_renderer(load_template("llama-3.1", Path(), None, HERE), llama, "assistant", HERE)
    for number in range(50):
        messages = dialog(number)
        dated = [Message("system", DATE_LINES + messages[0].content), *messages[1:]]
        raw = [
            datatypes.RawMessage(role=message.role, content=message.content)
            if message.role != "assistant"
            else datatypes.RawMessage(
                role="assistant", content=message.content, stop_reason=datatypes.StopReason.end_of_turn
            )
            for message in dated
        ]
        expected = reference.encode_dialog_prompt(raw[:-1]).tokens
        example = Example(HERE, messages)
        assert render_prompt(example, renderer).input_ids == expected, messages
        answer, _ = reference.encode_message(raw[-1], datatypes.ToolPromptFormat.json)
        header = len(reference._encode_header("assistant"))
        encoded = encode(example, renderer)
        assert encoded.input_ids.tolist() == expected + answer[header:], messages
        assert encoded.labels[len(expected) :].tolist() == answer[header:]
