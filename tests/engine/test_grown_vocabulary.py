"""An adapter with added tokens, or in another layout, is exported and compared with the model that PEFT makes of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer

from fastft.commands.export import ExportRequest, export
from tests.exports.test_layouts import NAMINGS, PEFT, grown
from tests.exports.tiny import write_adapter, write_base

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers and PEFT warn of each other's renames


@pytest.mark.parametrize("naming", NAMINGS)
def test_a_grown_vocabulary_is_exported_and_proven(tmp_path: Path, naming: str) -> None:
    write_base(tmp_path / "base")
    _, both = grown(308)
    if naming == "saved as resized":
        both["lm_head"] = both["embed_tokens"]  # one matrix, as the base has it
    modules = {"embed_tokens": "model.embed_tokens", "lm_head": "lm_head"}
    extra = {PEFT + NAMINGS[naming].format(module=modules[name]): values for name, values in both.items()}
    copied = {} if naming == "saved as resized" else {"modules_to_save": ["embed_tokens", "lm_head"]}
    write_adapter(tmp_path / "adapter", extra=extra, base_model_name_or_path=str(tmp_path / "base"), **copied)
    for file in ("tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(tmp_path / "base" / file, tmp_path / "adapter" / file)
    tokenizer = Tokenizer.from_file(str(tmp_path / "base/tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(f"<tool_{number}>", special=True) for number in range(8)])
    tokenizer.save(str(tmp_path / "adapter/tokenizer.json"))
    done = export(tmp_path / "adapter", ExportRequest(("gguf", "merged_16bit"), ("f16",)), lambda _: None)
    assert [verdict.reasons for verdict in done.verdicts] == [(), ()]
    assert all(verdict.tensors for verdict in done.verdicts)


def test_an_adapter_of_a_compiled_model_is_compared_with_the_adapted_model(tmp_path: Path) -> None:
    write_base(tmp_path / "base")
    arrays = write_adapter(tmp_path / "adapter", base_model_name_or_path=str(tmp_path / "base"))
    renamed = {name.replace(PEFT, f"{PEFT}_orig_mod."): values for name, values in arrays.items()}
    save_file(renamed, tmp_path / "adapter/adapter_model.safetensors")
    (verdict,) = export(tmp_path / "adapter", ExportRequest(("gguf",), ("f16",)), lambda _: None).verdicts
    assert verdict.reasons == ()
    assert verdict.mean_kl < 0.01 * verdict.mean_kl_base_trained
