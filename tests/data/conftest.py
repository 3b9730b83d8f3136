from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from fastft.data.example import Example, Message
from fastft.data.tokenizer import TokenizerFacts, make_facts
from fastft.errors import Where

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_tokenizer(special: list[str], bos: str | None = None) -> Tokenizer:
    """One token a byte, so that a token count is a byte count, and one for each special string."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: n for n, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    if bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return tokenizer


@pytest.fixture(scope="session")
def chatml() -> TokenizerFacts:
    """A ChatML model without BOS."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return make_facts(byte_tokenizer(special), eos_token="<|im_end|>", chat_template=CHATML)


@pytest.fixture(scope="session")
def llama() -> TokenizerFacts:
    """A Llama 3 model: its tokenizer puts a BOS before plain text, its templates write one too."""
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer = byte_tokenizer(special, bos="<|begin_of_text|>")
    return make_facts(tokenizer, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")


def every_token_facts() -> TokenizerFacts:
    """A tokenizer with the control tokens of every template that fastft brings."""
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|im_sep|>", "<|eot_id|>", "<|start_header_id|>"]
    special += ["<|end_header_id|>", "<start_of_turn>", "<end_of_turn>", "<|end|>", "<|user|>", "<|assistant|>"]
    special += ["<|system|>", "[INST]", "[/INST]", "<reserved_106>", "<reserved_107>"]
    special += ["<|turn>", "<turn|>", "<|tool>", "<tool|>", "<|tool_call>", "<tool_call|>", "<|tool_response>"]
    special += ["<tool_response|>", "<|channel>", "<channel|>", "<|start|>", "<|channel|>", "<|message|>", "<|return|>"]
    special += ["<|call|>", "<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>", "<｜User｜>", "<｜Assistant｜>"]
    special += ["[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"]
    special += ["[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "<|tool|>", "<|/tool|>", "<|tool_call|>", "<|/tool_call|>"]
    tokenizer = byte_tokenizer(special)
    stops = tuple(map(tokenizer.token_to_id, ("</s>", "<|return|>", "<|call|>", "<|tool_response>")))
    return make_facts(tokenizer, bos_token="<s>", eos_token="</s>", stop_ids=stops)


@pytest.fixture(scope="session")
def every_token() -> TokenizerFacts:
    return every_token_facts()


@pytest.fixture
def locate() -> Callable[[str], Where]:
    return lambda _key: Where("recipe.toml", 7)


@pytest.fixture(scope="session")
def conversation() -> Callable[..., Example]:
    """Makes an example of contents that the user and the assistant say in turn."""

    def make(*contents: str, system: str | None = None) -> Example:
        turns = [Message("user" if n % 2 == 0 else "assistant", text) for n, text in enumerate(contents)]
        lead = [Message("system", system)] if system is not None else []
        return Example(Where("rows.jsonl", 1), (*lead, *turns))

    return make


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes], Path]:
    def write_file(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file
