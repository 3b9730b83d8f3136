"""Models, adapters and templates that are made to harm: each is one problem within seconds, without a heavy import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fastft.data.template import ChatTemplate, load_template
from fastft.errors import FastftError, MachineError, RecipeError, Where
from fastft.exports.adapter import check_adapter, open_adapter
from fastft.exports.trained import TrainedWeights, read_config
from fastft.inference.conversation import render_chat
from fastft.planning.facts import find_facts
from fastft.planning.plan import make_plan
from fastft.probe.base_model import find_base_model
from fastft.probe.model_config import MAX_BYTES, read_object
from fastft.recipe.loader import load
from tests.exports.tiny import llama_config, write_adapter, write_base

# The limit of the process that tries a foreign file, and what Python and this process need besides.
SOON_SECONDS = 4


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    begun = cpu_seconds()
    yield
    assert cpu_seconds() - begun < SOON_SECONDS


def cpu_seconds() -> float:
    """Of this process and of those that it waited for; other processes on this machine change the wall clock."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


CONFIGS: dict[str, tuple[object, str]] = {
    "a text for a number": ({"hidden_size": "many"}, "hidden_size is"),
    "a float beyond all": ({"num_hidden_layers": 1e308}, "num_hidden_layers is 1e+308"),
    "infinity": ({"vocab_size": float("inf")}, "vocab_size is"),
    "nothing": ({"num_attention_heads": 0}, "num_attention_heads is 0"),
    "less than nothing": ({"intermediate_size": -1}, "intermediate_size is -1"),
    "a list of texts": ({"num_key_value_heads": ["a"]}, "num_key_value_heads is"),
    "a huge number": ({"hidden_size": 10**4000}, "hidden_size is"),
    "a text for a constant": ({"rms_norm_eps": "many"}, "rms_norm_eps is"),
    "not a number": ({"rope_theta": float("nan")}, "rope_theta is"),
    "source code as a type": ({"model_type": "llama\nimport os"}, "model_type is"),
    "the same deep inside": ({"vision_config": {"x": [{"model_type": "a\nb"}]}}, "model_type is"),
    "code of the Hub": ({"attn_implementation": "evil/kernels"}, "it would load code from the Hub"),
    "a list for a table": ({"quantization_config": ["bitsandbytes"]}, "quantization_config is no table"),
    "a text for a table": ({"text_config": "many"}, "text_config is no table"),
    "a list": ([1, 2], "not a JSON object"),
    "brackets": ("[" * 500, "not JSON"),
    "many brackets": ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
    "tables in tables": ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested too deeply"),
    "a large file": (" " * 5_000_000, "larger than 4 MiB"),
    "digits": ('{"hidden_size": ' + "9" * 100_000 + "}", "not JSON"),
    "bytes": (b"\xff\xfe\x00{", "not JSON"),
    "a name twice and half": ('{"a": 1, "a"', "not JSON"),
}


def write_config(folder: Path, value: object) -> None:
    folder.mkdir(exist_ok=True)
    if isinstance(value, dict):
        value = json.dumps({**llama_config(64, tied=False), **value})
    elif isinstance(value, list):
        value = json.dumps(value)
    (folder / "config.json").write_bytes(value if isinstance(value, bytes) else str(value).encode())
    (folder / "model.safetensors").touch()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_hostile_config_is_one_problem(name: str, tmp_path: Path) -> None:
    value, expected = CONFIGS[name]
    write_config(tmp_path / "base", value)

    for read in (
        lambda: read_config(tmp_path / "base" / "config.json"),
        lambda: find_base_model("base", None, tmp_path, Where("x.toml", 2)),
    ):
        with pytest.raises(MachineError) as caught:
            read()
        assert expected in str(caught.value)
        assert len(str(caught.value)) < 1000


def test_a_tokenizer_is_read_without_the_limits_of_a_config(tmp_path: Path) -> None:
    vocabulary = {"model_type": 0, "x" * MAX_BYTES: 1}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}), encoding="utf-8")

    assert read_config(tmp_path / "tokenizer.json", read_object) == {"model": {"vocab": vocabulary}}


def test_a_config_with_a_list_for_each_layer_has_a_plan(tmp_path: Path, write_recipe: Callable[..., Path]) -> None:
    write_config(tmp_path / "base", {"intermediate_size": [64, 128], "num_key_value_heads": [2, 4]})
    loaded = load(write_recipe(), ["model.id=./base"])

    assert make_plan(loaded, find_facts(loaded, tmp_path), "runs/x").memory is not None


SLOW = r"(([\w.]+)+)+x"
ADAPTERS: dict[str, tuple[dict[str, Any], str]] = {
    "a slow expression": ({"target_modules": SLOW}, "target_modules: takes more than 2 s"),
    "a broken one for what is left out": ({"exclude_modules": "(a"}, "exclude_modules: is no regular expression"),
    "a slow pattern of ranks": ({"rank_pattern": {SLOW: 4}}, "rank_pattern: takes more than 2 s"),
    "a broken pattern of alphas": ({"alpha_pattern": {"*": 4}}, "alpha_pattern: is no regular expression"),
    "a broken expression": ({"target_modules": "(q_proj"}, "is no regular expression"),
    "a broken pattern": ({"rank_pattern": {"*": 4}}, "is no regular expression"),
    "numbers as modules": ({"target_modules": [1, 2]}, "must be texts"),
    "a number for modules": ({"target_modules": 7}, "must be texts"),
    "replicated layers": ({"layer_replication": [[0, 10**9]]}, "repeats layers"),
    "a huge rank": ({"r": 10**9}, "r: must be a whole number"),
    "a rank of nothing": ({"r": 0}, "r: must be a whole number"),
    "a true rank": ({"r": True}, "r: must be a whole number"),
    "a list as rank": ({"r": [4]}, "r: must be a whole number"),
    "a huge rank of one module": ({"rank_pattern": {"q_proj": 10**9}}, "rank_pattern.q_proj: must be a whole number"),
    "a list of ranks": ({"rank_pattern": ["q_proj"]}, "rank_pattern: must be a table"),
    "an infinite alpha": ({"lora_alpha": float("inf")}, "lora_alpha: must be a number"),
    "an alpha that is none": ({"lora_alpha": float("nan")}, "lora_alpha: must be a number"),
    "another kind": ({"peft_type": ["LORA"]}, "only LoRA adapters"),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_hostile_adapter_is_one_problem(name: str, tmp_path: Path) -> None:
    changes, expected = ADAPTERS[name]
    write_base(tmp_path / "base")
    write_adapter(tmp_path / "adapter", **changes)

    with pytest.raises(RecipeError, match=expected.replace(".", r"\.")):
        check_adapter(tmp_path / "adapter", tmp_path / "base")


def test_a_pickled_adapter_is_refused_with_a_sentence(tmp_path: Path) -> None:
    write_base(tmp_path / "base")
    write_adapter(tmp_path / "adapter")
    (tmp_path / "adapter/adapter_model.safetensors").rename(tmp_path / "adapter/adapter_model.bin")

    for read in (
        lambda: check_adapter(tmp_path / "adapter", tmp_path / "base"),
        lambda: TrainedWeights(tmp_path / "base", tmp_path / "adapter"),
    ):
        with pytest.raises(RecipeError, match="pickle file, which can run code when it is read"):
            read()


@pytest.mark.parametrize("text", ["[" * 500, "[" * 100_000, "{", "9" * 10_000, "null", "\x00"])
def test_a_damaged_adapter_config_is_one_problem(text: str, tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter")
    (tmp_path / "adapter/adapter_config.json").write_text(text, encoding="utf-8")

    with pytest.raises(FastftError):
        open_adapter(tmp_path / "adapter")


def test_the_expression_that_unsloth_writes_is_accepted(tmp_path: Path) -> None:
    expression = (
        r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?(?:q_proj|v_proj).*?)"
        r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp)\.(?:(?:q_proj|v_proj)))"
    )
    write_base(tmp_path / "base")
    write_adapter(tmp_path / "adapter", target_modules=expression)

    check_adapter(tmp_path / "adapter", tmp_path / "base")
    with TrainedWeights(tmp_path / "base", tmp_path / "adapter") as trained:
        assert trained.adapter is not None


TEMPLATES = {
    "loops in loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a long text": "{{ 'a' * 2000000000 }}",
    "a text that is long enough": "{{ 'a' * 5000000 }}",
    "a power": "{{ 2 ** 10000000000 }}",
    "a text that doubles": "{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = n.s * 2 %}{% endfor %}",
    "indented lines": "{{ ('x\n' * 1000000) | indent(1000) }}",
    "a wide format": "{{ '%999999999s' % 'a' }}",
    "a list as JSON": "{{ ([1] * 100000000) | tojson }}",
    "many small pieces": "{% for a in range(99999) %}{{ messages }}{% endfor %}",
    "replaced letters": "{{ ('a' * 30) | replace('a', 'a' * 1000) | replace('a', 'b' * 100000) }}",
    "braces": "{" * 100_000,
    "conditions": "{% if x %}" * 500 + "{% endif %}" * 500,
    "parentheses": "{{" + "(" * 2000 + "1" + ")" * 2000 + "}}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_hostile_template_is_one_problem(name: str) -> None:
    with pytest.raises(RecipeError, match=r"takes more than|cannot be compiled"):
        load_template("model", Path(), TEMPLATES[name], Where("x.toml", 3))


def test_a_hostile_template_of_a_gguf_file_is_one_problem() -> None:
    with pytest.raises(FastftError, match="takes more than 2 s"):
        render_chat(TEMPLATES["loops in loops"], [{"role": "user", "content": "a"}], {})


def test_a_template_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "{% for m in messages %}{{ m.content }}{% endfor %}{# tried once #}"
    _ = ChatTemplate("model", source).compiled

    assert [file.name for file in (tmp_path / "cache/fastft/templates").iterdir()] == [ChatTemplate("", source).sha256]
    monkeypatch.setattr(sys, "executable", "/nowhere")
    _ = ChatTemplate("another name", source).compiled


def test_a_template_that_refuses_is_no_template_that_harms() -> None:
    _ = ChatTemplate("model", "{{ raise_exception('no') }}").compiled
    _ = ChatTemplate("model", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}").compiled


def test_the_limits_need_no_heavy_import(tmp_path: Path) -> None:
    write_base(tmp_path / "base")
    write_adapter(tmp_path / "adapter", target_modules=".*proj")
    program = (
        "import sys; from pathlib import Path; from fastft.exports.adapter import check_adapter;"
        f"check_adapter(Path({str(tmp_path / 'adapter')!r}), Path({str(tmp_path / 'base')!r}));"
        "print(*{'torch', 'transformers', 'peft', 'unsloth'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == ""
