"""llama.cpp makes the ids of training for every kind of tokenizer, or the export is refused before the first step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from fastft.data.tokenizer import load_tokenizer
from fastft.errors import RecipeError
from fastft.exports.gguf.agreement import agree, odd_texts
from fastft.exports.gguf.vocabulary import CONTROL, SPLITS, UNKNOWN, read_vocabulary
from fastft.exports.gguf.writer import estimate_gguf_bytes, write_gguf
from fastft.inference.conversation import render_chat
from fastft.inference.llamacpp import GgufModel
from tests.exports.families import write_family
from tests.exports.tiny import Arrays, base_arrays, read_json, write_base, write_json

ROWS = 420
TEXT = ["the quick brown fox jumps over the lazy dog", "what is the answer to 1234 questions", "a user and a system"]
ZEPHYR = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
INST = "{{ bos_token }}{% for message in messages %}[INST] {{ message['content'] }} [/INST]{% endfor %}"
PHI3 = ZEPHYR.replace("eos_token", "'<|end|>'")


def sentencepiece(folder: Path, *added: AddedToken, legacy: bool = True, begins: bool = True) -> None:
    """A SentencePiece tokenizer as its conversion to BPE; `legacy` puts a space after each special token too."""
    tokenizer = Tokenizer(BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = BpeTrainer(vocab_size=380, special_tokens=special, show_progress=False)
    text = ["▁" + line.replace(" ", "▁") for line in TEXT]
    tokenizer.train_from_iterator(text * 4, trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = content["added_tokens"][:3]
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.add_special_tokens(list(added))
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": begins}
    write_json(folder / "tokenizer_config.json", settings)


def written(base: Path, out: Path) -> tuple[list[str], int]:
    """(prompts that the exported file reads otherwise than training, all): rendered with its own template."""
    facts = load_tokenizer(base)
    report = write_gguf(base, None, out / "model.gguf", "f16")
    unequal, count = [], 0
    with GgufModel(report.file, context_tokens=64) as model:
        special = {"bos_token": facts.bos_token or "", "eos_token": facts.eos_token or ""}
        for odd in odd_texts():
            text = render_chat(str(model.chat_template), [{"role": "user", "content": odd}], special)
            begin = facts.bos_token if facts.adds_bos and not text.startswith(str(facts.bos_token)) else ""
            trained = facts.tokenizer.encode(f"{begin}{text}", add_special_tokens=False).ids
            count += 1
            if model.chat_tokens(text) != trained:
                unequal.append(odd)
    return unequal, count


def made(tmp_path: Path, template: str, *added: AddedToken, **settings: Any) -> Path:
    base = tmp_path / "base"
    write_base(base, vocabulary_arrays())
    sentencepiece(base, *added, **settings)
    (base / "chat_template.jinja").write_text(template, encoding="utf-8")
    return base


def vocabulary_arrays() -> Arrays:
    return base_arrays(vocabulary=ROWS)


@pytest.mark.parametrize("legacy", [True, False])
def test_a_template_without_the_beginning_token_is_read_with_it(tmp_path: Path, legacy: bool) -> None:
    """Mistral v1 with the zephyr template."""
    assert written(made(tmp_path, ZEPHYR, legacy=legacy), tmp_path) == ([], 200)


@pytest.mark.parametrize("legacy", [True, False])
def test_a_space_after_a_special_token_is_read_as_in_training(tmp_path: Path, legacy: bool) -> None:
    """Mistral v3, whose [INST] is one token and is followed by a space."""
    tokens = [AddedToken(text, special=True, normalized=False) for text in ("[INST]", "[/INST]")]
    assert written(made(tmp_path, INST, *tokens, legacy=legacy), tmp_path) == ([], 200)


def test_phi_3_is_read_as_in_training_under_any_name(tmp_path: Path) -> None:
    base, _ = write_family(tmp_path, "phi3", vocabulary=ROWS)
    names = ("<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
    sentencepiece(base, *(AddedToken(name, special=True, normalized=False, rstrip=True) for name in names))
    (base / "chat_template.jinja").write_text(PHI3, encoding="utf-8")
    unequal, count = written(base, tmp_path)
    # llama.cpp takes away ASCII white space alone after such a token.
    assert (unequal, count) == (["\u00a0", "\u3000", "\u3000▁"], 200)


def test_a_token_beyond_the_embedding_is_left_out_and_named(tmp_path: Path) -> None:
    """Gemma 3 has one."""
    base = made(tmp_path, ZEPHYR)
    tokenizer = read_json(base / "tokenizer.json")
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": ROWS, "content": "<image_soft_token>"})
    write_json(base / "tokenizer.json", tokenizer)
    report = write_gguf(base, None, tmp_path / "model.gguf", "f16")
    assert f"left out <image_soft_token>: the model's embedding has only {ROWS} rows" in report.notes


def test_the_unknown_token_is_no_control_token(tmp_path: Path) -> None:
    base = made(tmp_path, ZEPHYR)
    vocabulary = read_vocabulary(base, base, ROWS, "llama")
    assert vocabulary.types[:3] == [UNKNOWN, CONTROL, CONTROL]


def test_a_prompt_that_llama_cpp_would_read_otherwise_is_refused_before_training(tmp_path: Path) -> None:
    """A token that takes away the white space before it, which llama.cpp has no way to say."""
    base = made(tmp_path, ZEPHYR, AddedToken("<|cut|>", special=True, normalized=False, lstrip=True))
    estimate_gguf_bytes(base, None, "f16", prompts=("a<|cut|>b",))
    with pytest.raises(RecipeError, match=r"llama\.cpp reads 1 of .* texts otherwise than training"):
        estimate_gguf_bytes(base, None, "f16", prompts=("a   <|cut|>b",))


@pytest.mark.parametrize("pattern", [*SPLITS, "gpt-2", "smollm"])
def test_every_byte_level_tokenizer_is_read_as_in_training(tmp_path: Path, pattern: str) -> None:
    base = tmp_path / "base"
    write_base(base, vocabulary_arrays())
    tokenizer = Tokenizer(BPE())
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern in ("gpt-2", "smollm"))
    first: list[Any] = [] if pattern == "gpt-2" else [pre_tokenizers.Digits(individual_digits=True)]
    if pattern in SPLITS:
        first = [pre_tokenizers.Split(Regex(pattern), behavior="isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*first, bytes_only]) if first else bytes_only
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXT * 4, trainer)
    tokenizer.save(str(base / "tokenizer.json"))
    assert written(base, tmp_path) == ([], 200)


def test_a_tokenizer_that_normalizes_is_used_and_the_difference_said(tmp_path: Path) -> None:
    """Qwen's tokenizers compose letters and accents (NFC), llama.cpp does not."""
    base = tmp_path / "base"
    write_base(base, vocabulary_arrays())
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.save(str(base / "tokenizer.json"))
    vocabulary = read_vocabulary(base, base, ROWS, "llama")
    (note,) = agree(vocabulary, base, "llama").notes
    assert "odd texts otherwise" in note
