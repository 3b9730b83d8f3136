from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastft.data.tokenizer import TokenizerFacts, load_tokenizer
from fastft.errors import MachineError


def save(folder: Path, facts: TokenizerFacts, **files: object) -> Path:
    facts.tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_tokens_and_template_come_from_the_folder(tmp_path: Path, llama: TokenizerFacts) -> None:
    config = {"bos_token": {"content": "<|begin_of_text|>"}, "eos_token": "<|eot_id|>", "chat_template": "old"}
    (tmp_path / "chat_template.jinja").write_text("new")
    facts = load_tokenizer(save(tmp_path, llama, tokenizer_config=config))
    assert (facts.bos_token, facts.eos_token, facts.pad_token) == ("<|begin_of_text|>", "<|eot_id|>", None)
    assert (facts.chat_template, facts.adds_bos, facts.stop_tokens) == ("new", True, ("<|eot_id|>",))
    assert "<|start_header_id|>" in facts.special_tokens


def test_the_default_of_several_templates_is_taken(tmp_path: Path, chatml: TokenizerFacts) -> None:
    several = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    assert load_tokenizer(save(tmp_path, chatml, tokenizer_config={"chat_template": several})).chat_template == "d"


def test_what_stops_the_model_goes_before_what_the_tokenizer_calls_eos(tmp_path: Path, chatml: TokenizerFacts) -> None:
    stop = chatml.id_of("<|im_end|>")
    config = {"eos_token": "<|im_start|>"}
    facts = load_tokenizer(save(tmp_path, chatml, tokenizer_config=config, generation_config={"eos_token_id": [stop]}))
    assert (facts.eos_token, facts.stop_tokens, facts.end_of_text) == ("<|im_start|>", ("<|im_end|>",), "<|im_end|>")


def test_a_truncation_that_was_left_in_the_file_does_not_cut_rows(tmp_path: Path, chatml: TokenizerFacts) -> None:
    value = json.loads(chatml.tokenizer.to_str())
    value["truncation"] = {"max_length": 2, "direction": "Right", "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(value))
    assert len(load_tokenizer(tmp_path).tokenizer.encode("longer than two").ids) == len("longer than two")


def test_a_missing_or_damaged_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(MachineError, match="damaged"):
        load_tokenizer(tmp_path)
