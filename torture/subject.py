"""What is tortured: runs of a tiny random model, and all of a run that must not depend on where it was disturbed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torture.case import Outcome
from torture.process import Ended

RUN = ("run", "subject.toml")
# Everything that a run can do, in seconds: conversion of a GGUF file, evaluations, best checkpoint, exports.
RICH: dict[str, Any] = {
    "model.id": "package:torture_base/model.gguf",
    "data.eval": "eval.jsonl",
    "eval.exact_match": True,
    "eval.max_examples": 3,
    "eval.max_new_tokens": 4,
    "lora.lora_dropout": 0.1,
    "train.eval_strategy": "steps",
    "train.eval_steps": 3,
    "train.save_steps": 3,
    "train.load_best_model_at_end": True,
    "export.formats": ["merged_16bit", "gguf"],
    "export.quantization": ["q8_0"],
}


def make_base(folder: Path) -> None:
    """The tiny model as a folder, and as the GGUF file of an importable package."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from fastft.engine.selftest.made_up import CHATML, SPECIAL
    from fastft.exports.gguf.writer import write_gguf

    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "es", "ye"]
    # transformers reads no GGUF file with one merge only, or without a token for the beginning.
    made = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, [("e", "s"), ("y", "e")]))
    cut = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    made.pre_tokenizer = pre_tokenizers.Sequence(cut)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    first, _, end = SPECIAL
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token=first, eos_token=end, pad_token=first)
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder / "base")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
        initializer_range=0.1,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    (folder / "torture_base").mkdir()
    (folder / "torture_base" / "__init__.py").touch()
    write_gguf(folder / "base", None, folder / "torture_base" / "model.gguf", "f16")


def write_subject(folder: Path, base: Path, changes: Mapping[str, Any] | None = None) -> Path:
    """A folder with a recipe and its rows."""
    from tests.engine.tiny import make_rows, write_recipe, write_rows  # torch, which the checks of answers do without

    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "train.jsonl", make_rows(24))
    write_rows(folder / "eval.jsonl", make_rows(6, seed=5))
    engine = os.environ.get("FASTFT_ENGINE", "transformers")
    return write_recipe(folder, base, {"model.engine": engine, **(changes or {})}, "subject")


def copy(shared: Path, folder: Path) -> None:
    """The folder of a subject, with its runs and its cache, at another place."""
    shutil.copytree(shared, folder, dirs_exist_ok=True, symlinks=True)


def finished_run(folder: Path) -> Path | None:
    """The only finished run in a folder."""
    runs = [path.parent for path in folder.glob("runs/*/result.json")]
    return runs[0] if len(runs) == 1 else None


def facts(run: Path) -> dict[str, str]:
    """Digests of what must be equal: adapter, metrics without times, result without times, exports."""
    clock = ("seconds", "runtime", "time", "per_second", "memory_bytes")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    metrics = [{key: value for key, value in line.items() if not key.endswith(clock)} for line in lines]
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    best = Path(str(result.get("best_checkpoint"))).name
    kept = {key: result.get(key) for key in ("steps", "train_loss", "eval_loss", "exact_match")}
    found = {"metrics": json.dumps(metrics, sort_keys=True), "best": best, "result": json.dumps(kept, sort_keys=True)}
    texts = {name: _digest(text.encode()) for name, text in found.items()}
    weights = [
        *run.glob("adapter/*.safetensors"),
        *run.glob("exports/*/*.safetensors"),
        *run.glob("exports/gguf/*.gguf"),
    ]
    return texts | {str(file.relative_to(run)): _digest(file.read_bytes()) for file in sorted(weights)}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def write_facts(folder: Path, path: Path) -> None:
    run = finished_run(folder)
    assert run is not None, (folder / ".shown").read_text(encoding="utf-8")[-2000:]
    path.write_text(json.dumps(facts(run)), encoding="utf-8")


def compare(folder: Path, ended: Ended, wanted: Path, group: str = "", seconds: float | None = None) -> Outcome:
    """The verdict on a run that went on to its end in `folder`, beside the facts of an undisturbed one."""
    took = ended.cpu_seconds if seconds is None else seconds
    if ended.is_traceback:
        return Outcome("traceback", took, group, ended.last_line)
    run = finished_run(folder)
    if ended.code != 0 or run is None:
        return Outcome("not exact", took, group, f"exit {ended.code}: {ended.last_line}")
    expected, found = json.loads(wanted.read_text(encoding="utf-8")), facts(run)
    different = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
    return Outcome("not exact" if different else "exact", took, group, ", ".join(different))


def refusal(ended: Ended, group: str = "", *, limit: float = 3.0, names: str = "") -> Outcome:
    """The verdict on a command that ought to refuse: one sentence, soon, which has `names` in it."""
    took = ended.cpu_seconds
    if ended.is_traceback or ended.code < 0:
        return Outcome("traceback", took, group, f"exit {ended.code}: {ended.last_line}")
    if ended.code == 0:
        return Outcome("silent", took, group, ended.last_line)
    if ended.code not in (1, 2, 3, 4, 5) or names not in ended.shown:
        return Outcome("wrong answer", took, group, f"exit {ended.code}: {ended.last_line}")
    return Outcome("slow" if took > limit else "refused", took, group, ended.last_line)
