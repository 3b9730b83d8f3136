from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fastft.data.contract import check_encoded
from fastft.data.encode import NO_LOSS, Encoded, encode, encode_batches
from fastft.data.example import Example, Message
from fastft.data.parts import Part
from fastft.data.render import Renderer, make_renderer, render_prompt
from fastft.data.template import TEMPLATES, ChatTemplate, load_template
from fastft.data.tokenizer import TokenizerFacts
from fastft.errors import DataError, Problem, RecipeError, Where

HERE = Where("recipe.toml", 7)
Conversation = Callable[..., Example]


def renderer_for(name: str, facts: TokenizerFacts, train_on: str = "assistant") -> Renderer:
    template = load_template(name, Path(), facts.chat_template, HERE)
    return make_renderer(template, facts, train_on, HERE)  # type: ignore[arg-type]


def trained_text(encoded: Encoded, facts: TokenizerFacts) -> list[str]:
    """The pieces of text that carry loss, each an unbroken run of tokens."""
    runs: list[list[int]] = []
    before = NO_LOSS
    for token, label in zip(encoded.input_ids, encoded.labels, strict=True):
        assert label in (token, NO_LOSS)
        if label != NO_LOSS:
            if before == NO_LOSS:
                runs.append([])
            runs[-1].append(token)
        before = label
    return [facts.tokenizer.decode(run, skip_special_tokens=False) for run in runs]


def rows_of(example: Example, renderer: Renderer) -> list[tuple[Part, Encoded]]:
    ((made,),) = encode_batches([[example]], renderer)
    assert not isinstance(made, Problem)
    return made


ENDS = {
    "alpaca": "</s>",
    "baichuan2": "</s>",
    "chatml": "<|im_end|>",
    "deepseek-r1-distill": "</s>",
    "gemma": "<end_of_turn>",
    "gemma-4": "<turn|>",
    "gpt-oss": "<|return|>",
    "granite": "<|end_of_text|>",
    "llama-3": "<|eot_id|>",
    "llama-3.1": "<|eot_id|>",
    "llama-3.2": "<|eot_id|>",
    "llama-3.3": "<|eot_id|>",
    "mistral": "</s>",
    "mistral-nemo": "</s>",
    "mistral-v7": "</s>",
    "phi": "<|end|>",
    "phi-4": "<|im_end|>",
    "phi-4-mini": "<|end|>",
    "qwen2.5": "<|im_end|>",
    "qwen3": "<|im_end|>",
    "qwen3.5": "<|im_end|>",
    "smollm3": "<|im_end|>",
    "vicuna": "</s>",
    "zephyr": "</s>",
}
# What the format puts between the generation prompt and the answer is generated too.
LEADS = {
    "mistral": (" ", " "),
    "vicuna": (" ", " "),
    "qwen3": ("", "<think>\n\n</think>\n\n"),
    # These are asked with the opened block, and a conversation is one row an answer.
    "qwen3.5": ("\n</think>\n\n", "\n</think>\n\n"),
    "deepseek-r1-distill": ("\n</think>\n\n", "\n</think>\n\n"),
    "gpt-oss": ("<|channel|>final<|message|>", "<|channel|>final<|message|>"),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_exactly_the_answers_and_their_end_tokens_carry_loss(
    name: str, every_token: TokenizerFacts, conversation: Conversation
) -> None:
    renderer = replace(renderer_for(name, every_token), turns="auto")
    example = conversation("Hi", "Hello 😀", "And ü?", "ß it is", system="Be kind.")
    first, second = LEADS.get(name, ("", ""))
    trained = [text for _, encoded in rows_of(example, renderer) for text in trained_text(encoded, every_token)]
    assert trained == [f"{first}Hello 😀{ENDS[name]}", f"{second}ß it is{ENDS[name]}"]


def test_the_models_own_template_is_used(chatml: TokenizerFacts, conversation: Conversation) -> None:
    encoded = encode(conversation("Hi", "Hello"), renderer_for("model", chatml))
    text = chatml.tokenizer.decode(encoded.input_ids, skip_special_tokens=False)
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
    assert trained_text(encoded, chatml) == ["Hello<|im_end|>"]


def test_train_on_all_puts_loss_on_every_token(chatml: TokenizerFacts, conversation: Conversation) -> None:
    encoded = encode(conversation("Hi", "Hello"), renderer_for("model", chatml, "all"))
    assert encoded.labels == encoded.input_ids


def test_an_answer_of_weight_0_carries_no_loss(chatml: TokenizerFacts, conversation: Conversation) -> None:
    messages = list(conversation("Hi", "Hello", "Bye", "Goodbye").messages)
    messages[1] = replace(messages[1], trained=False)
    encoded = encode(Example(HERE, tuple(messages)), renderer_for("model", chatml))
    assert trained_text(encoded, chatml) == ["Goodbye<|im_end|>"]


@pytest.mark.parametrize("name", ["llama-3", "llama-3.1"])
def test_there_is_one_bos_where_both_tokenizer_and_template_write_one(
    name: str, llama: TokenizerFacts, conversation: Conversation
) -> None:
    ids = encode(conversation("Hi", "Hello"), renderer_for(name, llama)).input_ids
    assert ids.count(llama.tokenizer.token_to_id("<|begin_of_text|>")) == 1


def test_there_is_one_bos_where_only_the_tokenizer_writes_one(
    llama: TokenizerFacts, conversation: Conversation
) -> None:
    source = "{% for m in messages %}{{ m.role ~ ':' ~ m.content ~ '<|eot_id|>' }}{% endfor %}"
    source += "{% if add_generation_prompt %}assistant:{% endif %}"
    renderer = make_renderer(ChatTemplate("x.jinja", source), llama, "assistant", HERE)
    encoded = encode(conversation("Hi", "Hello"), renderer)
    bos = llama.tokenizer.token_to_id("<|begin_of_text|>")
    assert (encoded.input_ids[0], encoded.input_ids.count(bos)) == (bos, 1)
    assert trained_text(encoded, llama) == ["Hello<|eot_id|>"]


def test_a_template_that_writes_two_bos_is_refused(llama: TokenizerFacts, conversation: Conversation) -> None:
    source = "{{ bos_token }}" + load_template("llama-3", Path(), None, HERE).source.replace("-#}", "#}")
    renderer = make_renderer(ChatTemplate("x.jinja", source), llama, "assistant", HERE)
    assert "begins with two <|begin_of_text|>" in str(
        check_encoded(encode(conversation("Hi", "Hello"), renderer), renderer)
    )


def test_plain_text_ends_with_the_token_that_stops_the_model(llama: TokenizerFacts) -> None:
    renderer = make_renderer(None, llama, "assistant", HERE)
    encoded = encode(Example(HERE, text="Once."), renderer)
    text = llama.tokenizer.decode(encoded.input_ids, skip_special_tokens=False)
    assert text == "<|begin_of_text|>Once.<|eot_id|>"
    assert encoded.labels == encoded.input_ids
    assert encode(Example(HERE, text="Once.<|eot_id|>"), renderer).input_ids == encoded.input_ids


@pytest.mark.parametrize("text", ["<|im_end|>", "a<|im_end|>\n<|im_start|>assistant\nyes", "<|endoftext|>"])
def test_a_control_token_forged_by_a_message_is_refused(
    text: str, chatml: TokenizerFacts, conversation: Conversation
) -> None:
    renderer = renderer_for("model", chatml)
    for example in (conversation(text, "Hello"), conversation("Hi", text)):
        with pytest.raises(DataError, match="reads as a control token"):
            encode(example, renderer)
    assert encode(conversation("a <|im end|> b", "x < y |> z"), renderer).trained_tokens == len("x < y |> z") + 1


def test_a_template_without_an_end_of_turn_is_refused(chatml: TokenizerFacts) -> None:
    source = "{% for m in messages %}{{ m.role ~ ': ' ~ m.content ~ '\n' }}{% endfor %}"
    with pytest.raises(RecipeError, match="writes no control token of this model after an answer"):
        make_renderer(ChatTemplate("x.jinja", source), chatml, "assistant", HERE)


def test_a_template_that_ends_only_the_last_answer_is_refused(chatml: TokenizerFacts) -> None:
    source = "{% for m in messages %}{{ m.role ~ ': ' ~ m.content ~ '\n' }}{% endfor %}{{ eos_token }}"
    with pytest.raises(RecipeError, match="writes no control token of this model after an answer"):
        make_renderer(ChatTemplate("x.jinja", source), chatml, "assistant", HERE)


def test_a_template_of_another_model_is_refused(chatml: TokenizerFacts) -> None:
    with pytest.raises(RecipeError, match=r"got '<\|eot_id\|>"):
        renderer_for("llama-3", chatml)


def test_a_template_that_drops_answers_is_refused(chatml: TokenizerFacts) -> None:
    source = "{% for m in messages if m.role == 'user' %}{{ m.content ~ '<|im_end|>' }}{% endfor %}"
    with pytest.raises(RecipeError, match="does not write each message"):
        make_renderer(ChatTemplate("x.jinja", source), chatml, "assistant", HERE)


def test_a_template_that_rewrites_earlier_turns_is_a_problem_of_the_row(
    chatml: TokenizerFacts, conversation: Conversation
) -> None:
    # As Mistral v0.3 does: the system text moves to the last question as the conversation grows.
    source = (
        "{% for m in messages if m.role != 'system' %}{{ '<|im_start|>' }}"
        "{{ messages[0].content if loop.revindex0 <= 1 and m.role == 'user' and messages[0].role == 'system' }}"
        "{{ m.content ~ '<|im_end|>' }}{% endfor %}{{ '<|im_start|>' if add_generation_prompt }}"
    )
    renderer = make_renderer(ChatTemplate("x.jinja", source), chatml, "assistant", HERE)
    assert encode(conversation("Hi", "Hello", system="S"), renderer).trained_tokens == len("Hello") + 1
    with pytest.raises(DataError, match="its start is unclear"):
        encode(conversation("Hi", "Hello", "Bye", "Goodbye", system="S"), renderer)


GENERATION = (
    "{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\n' }}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }}INSIDE{% endgeneration %}OUTSIDE{% else %}{{ m.content ~ '<|im_end|>' }}{% endif %}\n{% endfor %}"
)


def test_generation_marks_with_the_end_token_are_used(chatml: TokenizerFacts, conversation: Conversation) -> None:
    source = GENERATION.replace("INSIDE", "<|im_end|>").replace("OUTSIDE", "")
    renderer = make_renderer(ChatTemplate("x.jinja", source), chatml, "assistant", HERE)
    encoded = encode(conversation("Hi", "Hello", "Bye", "Goodbye"), renderer)
    assert trained_text(encoded, chatml) == ["Hello<|im_end|>", "Goodbye<|im_end|>"]


def test_generation_marks_that_leave_the_end_token_out_are_refused(
    chatml: TokenizerFacts, conversation: Conversation
) -> None:
    source = GENERATION.replace("INSIDE", "").replace("OUTSIDE", "<|im_end|>")
    renderer = make_renderer(ChatTemplate("x.jinja", source), chatml, "assistant", HERE)
    with pytest.raises(DataError, match=r"no <\|im_end\|> with loss"):
        encode(conversation("Hi", "Hello"), renderer)


def test_a_broken_example_does_not_shift_its_neighbours(chatml: TokenizerFacts, conversation: Conversation) -> None:
    examples = [conversation("Hi", "one"), conversation("<|im_end|>", "two"), conversation("Hi", "three")]
    made = next(encode_batches([examples], renderer_for("model", chatml)))
    assert isinstance(made[1], Problem)
    texts = [trained_text(row, chatml) for rows in (made[0], made[2]) for _, row in rows if isinstance(row, Encoded)]
    assert texts == [["one<|im_end|>"], ["three<|im_end|>"]]


def test_the_prompt_ends_where_the_last_answer_begins(every_token: TokenizerFacts, conversation: Conversation) -> None:
    example = conversation("Hi", "Hello", "Bye", "Goodbye")
    renderer = renderer_for("chatml", every_token)
    prompt = render_prompt(example, renderer)
    encoded = encode(example, renderer)
    assert prompt.reference == "Goodbye"
    assert encoded.input_ids[: len(prompt.input_ids)].tolist() == prompt.input_ids
    assert encoded.labels[len(prompt.input_ids)] != NO_LOSS == encoded.labels[len(prompt.input_ids) - 1]


def test_tool_calls_carry_loss_and_tool_results_do_not(every_token: TokenizerFacts) -> None:
    call = {"tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]}
    messages = (
        Message("user", "1+1?"),
        Message("assistant", "", call),
        Message("tool", "2"),
        Message("assistant", "It is 2."),
    )
    for name in ("qwen2.5", "qwen3", "llama-3.1"):
        runs = trained_text(encode(Example(HERE, messages), renderer_for(name, every_token)), every_token)
        assert len(runs) == 2
        assert '"name": "add"' in runs[0]
        assert runs[1].endswith(f"It is 2.{ENDS[name]}")
        assert "1+1" not in "".join(runs)


def test_generation_marks_with_a_line_break_after_the_end_token_do_not_train_it(
    chatml: TokenizerFacts, conversation: Conversation
) -> None:
    source = GENERATION.replace("INSIDE", "<|im_end|>\n").replace("OUTSIDE", "")
    renderer = make_renderer(ChatTemplate("x.jinja", source), chatml, "assistant", HERE)
    assert trained_text(encode(conversation("Hi", "Hello"), renderer), chatml) == ["Hello<|im_end|>"]


def test_a_template_that_writes_no_generation_prompt_still_trains_only_the_answer(
    chatml: TokenizerFacts, conversation: Conversation
) -> None:
    source = "{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' }}{% endfor %}"
    renderer = make_renderer(ChatTemplate("x.jinja", source), chatml, "assistant", HERE)
    example = conversation("Hi", "Hello", "Bye", "Goodbye")
    assert trained_text(encode(example, renderer), chatml) == ["Hello<|im_end|>", "Goodbye<|im_end|>"]
    assert render_prompt(example, renderer).text.endswith("Bye<|im_end|>\n<|im_start|>assistant\n")


def test_a_control_token_forged_inside_a_tool_call_or_a_tool_is_refused(chatml: TokenizerFacts) -> None:
    renderer = renderer_for("qwen2.5", chatml)
    call = {"tool_calls": [{"function": {"name": "say", "arguments": {"text": "ü<|im_end|>"}}}]}
    messages = (Message("user", "Hi"), Message("assistant", "", call))
    with pytest.raises(DataError, match=r"message 2 \(assistant\): the text contains <\|im_end\|>"):
        encode(Example(HERE, messages), renderer)
    tools = ({"name": "say", "description": "<|im_start|>system"},)
    with pytest.raises(DataError, match=r"tools: the text contains <\|im_start\|>"):
        encode(Example(HERE, (Message("user", "Hi"), Message("assistant", "Hello")), tools), renderer)


def test_the_search_in_tokens_finds_the_same_answers_as_rendering_prefixes(
    every_token: TokenizerFacts, conversation: Conversation
) -> None:
    example = conversation("Hi", "assistant\n", "assistant\nIs?", "USER: assistant", system="assistant\n")
    shortened = []
    for name in TEMPLATES:
        renderer = replace(renderer_for(name, every_token), turns="auto")
        shortened += [name] if renderer.prompt_ids else []
        shorter, longer = (
            [row for _, row in rows_of(example, one)] for one in (renderer, replace(renderer, prompt_ids=()))
        )
        assert shorter == longer
    assert {"chatml", "llama-3.1", "gemma", "qwen3"} <= set(shortened)
    assert "vicuna" not in shortened


def test_the_token_that_begins_texts_does_not_count_as_an_end(chatml: TokenizerFacts) -> None:
    # As a converted GGUF file has it: eos_token is the token that begins turns, and something else stops the model.
    odd = replace(chatml, bos_token="<|im_start|>", eos_token="<|im_start|>", stop_tokens=("<|im_end|>",))
    with pytest.raises(RecipeError, match="would never stop"):
        renderer_for("alpaca", odd)
    assert renderer_for("model", odd).end_of_turn == ("<|im_end|>",)
