"""fastft renders and tokenizes chat templates without transformers; these tests hold it to transformers' results."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fastft.data.encode import NO_LOSS, encode, encode_batches
from fastft.data.example import Example, Message
from fastft.data.render import make_renderer, render_prompt
from fastft.data.template import TEMPLATES, ChatTemplate, load_template
from fastft.data.tokenizer import make_facts
from fastft.errors import Problem, Where

HERE = Where("rows.jsonl", 1)
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|im_sep|>", "<|eot_id|>", "<|start_header_id|>"]
SPECIAL += ["<|end_header_id|>", "<start_of_turn>", "<end_of_turn>", "<|end|>", "<|return|>", "<|start|>", "<turn|>"]
SPECIAL += ["<|turn>", "<|channel>", "<channel|>", "<|message|>", "<|channel|>", "<|end_of_text|>", "<|start_of_role|>"]
SPECIAL += ["<|end_of_role|>", "<｜User｜>", "<｜Assistant｜>"]
CONVERSATION = (
    Message("system", "Be kind."),
    Message("user", " Hi ü 😀\n"),
    Message("assistant", "Hello <b>you</b>."),
    Message("user", "And?"),
    Message("assistant", "No more."),
)
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content ~ '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content ~ '<|im_end|>' }}"
    "{% endif %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# What chat templates in use lean on: loop controls, tojson with its options, string methods, undefined values.
FEATURES = (
    "{%- for m in messages %}\n    {%- if loop.index > 3 %}{% break %}{% endif %}\n"
    "    {{- m | tojson(indent=2) }}{{ m.content.strip() | tojson }}{{ missing }}{{ tools is none }}"
    "{{ bos_token }}{{ pad_token }}<|im_end|>\n{% endfor %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({character: n for n, character in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    return made


def both(tokenizer: Tokenizer, source: str) -> tuple[PreTrainedTokenizerFast, dict[str, str]]:
    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    theirs.chat_template = source
    return theirs, make_facts(tokenizer, bos_token="<s>", eos_token="</s>").template_tokens


@pytest.mark.parametrize("name", [*TEMPLATES, "features", "marked"])
@pytest.mark.parametrize("add_generation_prompt", [False, True])
def test_the_text_equals_that_of_transformers(tokenizer: Tokenizer, name: str, add_generation_prompt: bool) -> None:
    sources = {"features": FEATURES, "marked": MARKED}
    source = sources[name] if name in sources else load_template(name, Path(), None, HERE).source
    theirs, tokens = both(tokenizer, source)
    messages = CONVERSATION[:-1] if add_generation_prompt else CONVERSATION
    values = [message.as_template_value() for message in messages]
    expected = theirs.apply_chat_template(values, tokenize=False, add_generation_prompt=add_generation_prompt)
    template = ChatTemplate(name, source, date.today().isoformat())
    found = template.render(messages, tokens, where=HERE, add_generation_prompt=add_generation_prompt)
    assert found == expected


def test_ids_and_assistant_mask_equal_those_of_transformers(tokenizer: Tokenizer) -> None:
    theirs, _ = both(tokenizer, MARKED)
    values = [message.as_template_value() for message in CONVERSATION]
    expected = theirs.apply_chat_template(values, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    facts = make_facts(tokenizer, bos_token="<s>", eos_token="</s>")
    example = Example(HERE, CONVERSATION)
    encoded = encode(example, make_renderer(ChatTemplate("x", MARKED), facts, "assistant", HERE))
    assert encoded.input_ids.tolist() == expected["input_ids"]
    assert [int(label != NO_LOSS) for label in encoded.labels] == expected["assistant_masks"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_derived_mask_equals_the_template_with_marks_put_in(tokenizer: Tokenizer, name: str) -> None:
    stops = tuple(map(tokenizer.token_to_id, ("</s>", "<|return|>")))
    facts = make_facts(tokenizer, bos_token="<s>", eos_token="</s>", stop_ids=stops)
    template = replace(load_template(name, Path(), None, HERE), today=date.today().isoformat())
    theirs, _ = both(tokenizer, template.source)
    renderer = make_renderer(template, facts, "assistant", HERE, "auto")
    ((made,),) = encode_batches([[Example(HERE, CONVERSATION)]], renderer)
    assert not isinstance(made, Problem)
    for part, encoded in made:
        values = [message.as_template_value() for message in part.example.messages]
        whole = theirs.apply_chat_template(values, tokenize=True, return_dict=True)
        assert encoded.input_ids.tolist() == whole["input_ids"]
        prompt = theirs.apply_chat_template(values[:-1], tokenize=True, return_dict=True, add_generation_prompt=True)
        assert render_prompt(part.example, renderer).input_ids == prompt["input_ids"]
