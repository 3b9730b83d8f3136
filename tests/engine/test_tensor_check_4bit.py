"""The tensor check of weights in 4 bits: no alarm on good folders of seven architectures, and planted faults caught."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fastft.engine.quantize import write_merged_4bit
from fastft.exports.job import MERGED_4BIT, Job
from fastft.exports.merged import write_merged
from fastft.exports.tensor_check import TensorCheck, check_tensors
from tests.exports.families import FAMILIES, write_family
from tests.exports.tiny import Arrays, read_json, write_adapter, write_base, write_json

QUERY, DOWN = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"
FILE = "model-00001.safetensors"


def check(base: Path, adapter: Path, folder: Path) -> TensorCheck:
    return check_tensors(base, adapter, folder, MERGED_4BIT)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_good_folder_of_each_architecture_raises_no_alarm(tmp_path: Path, family: str) -> None:
    base, adapter = write_family(tmp_path, family)

    folder = write_merged_4bit(Job(base, adapter, tmp_path / "out", (MERGED_4BIT,)), MERGED_4BIT).path

    found = check(base, adapter, folder)
    assert found.reasons == ()
    assert found.tensors > 10


@pytest.mark.parametrize("alpha", [0.0, 4.0, 7.2, 8.8, 10.0])
def test_an_adapter_that_is_in_it_another_number_of_times_is_caught(tmp_path: Path, alpha: float) -> None:
    base, adapter, wrong = (tmp_path / name for name in ("base", "adapter", "wrong"))
    write_base(base)
    write_adapter(adapter)  # lora_alpha 8
    write_adapter(wrong)
    write_json(wrong / "adapter_config.json", {**read_json(wrong / "adapter_config.json"), "lora_alpha": alpha})

    folder = write_merged_4bit(Job(base, wrong, tmp_path / "out", (MERGED_4BIT,)), MERGED_4BIT).path

    [reason] = check(base, adapter, folder).reasons
    assert reason.startswith("14 of 20 tensors are wrong")


def swap(arrays: Arrays, one: str, two: str) -> None:
    """Swap two matrices of one shape with all that belongs to them."""
    for name in [name for name in arrays if name.startswith(one)]:
        other = name.replace(one, two)
        arrays[name], arrays[other] = arrays[other], arrays[name]


def layers_swapped(arrays: Arrays) -> None:
    swap(arrays, QUERY, QUERY.replace("layers.0", "layers.1"))


def norms_swapped(arrays: Arrays) -> None:
    swap(arrays, "model.layers.0.input_layernorm.weight", "model.layers.0.post_attention_layernorm.weight")


def halves_swapped(arrays: Arrays) -> None:
    arrays[QUERY] = (arrays[QUERY] << 4) | (arrays[QUERY] >> 4)


def one_code_off(arrays: Arrays) -> None:
    arrays[DOWN][0] ^= 0x10


def scales_zero(arrays: Arrays) -> None:
    arrays[f"{DOWN}.absmax"][:] = 0


def scales_reversed(arrays: Arrays) -> None:
    arrays[f"{QUERY}.absmax"] = np.ascontiguousarray(arrays[f"{QUERY}.absmax"][::-1])


def outer_scales_doubled(arrays: Arrays) -> None:
    arrays[f"{QUERY}.nested_absmax"] *= 2


def another_table(arrays: Arrays) -> None:
    arrays[f"{QUERY}.quant_map"] = np.linspace(-1, 1, 16, dtype=np.float32)


def embedding_rounded(arrays: Arrays) -> None:
    name = "model.embed_tokens.weight"
    arrays[name] = (arrays[name] * np.float16(0.99)).astype(np.float16)


def a_norm_lost(arrays: Arrays) -> None:
    del arrays["model.norm.weight"]


FAULTS: list[Callable[[Arrays], None]] = [
    *(layers_swapped, norms_swapped, halves_swapped, one_code_off, scales_zero, scales_reversed),
    *(outer_scales_doubled, another_table, embedding_rounded, a_norm_lost),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_in_the_file_is_caught(tmp_path: Path, fault: Callable[[Arrays], None]) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    write_base(base)
    write_adapter(adapter)
    folder = write_merged_4bit(Job(base, adapter, tmp_path / "out", (MERGED_4BIT,)), MERGED_4BIT).path
    arrays = {name: array.copy() for name, array in load_file(folder / FILE).items()}
    fault(arrays)
    save_file(arrays, folder / FILE, metadata={"format": "pt"})
    if fault is a_norm_lost:
        index = read_json(folder / "model.safetensors.index.json")
        del index["weight_map"]["model.norm.weight"]
        write_json(folder / "model.safetensors.index.json", index)

    assert check(base, adapter, folder).reasons


def test_a_folder_in_16_bits_under_the_name_of_4_bits_is_caught(tmp_path: Path) -> None:
    write_base(tmp_path / "base")
    write_adapter(tmp_path / "adapter")
    folder = write_merged(tmp_path / "base", tmp_path / "adapter", tmp_path / "out").folder

    [reason] = check(tmp_path / "base", tmp_path / "adapter", folder).reasons
    assert (
        "14 of 20 tensors are wrong: model.layers.0.mlp.down_proj.weight is F16 (64, 96), 4 bits (64, 96) is right"
        in reason
    )
