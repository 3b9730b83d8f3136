from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fastft.errors import FastftError, MachineError, RecipeError, TrainingError
from fastft.exports.merged import estimate_merged_bytes, write_merged
from fastft.files import atomic
from tests.exports.tiny import HIDDEN, base_arrays, read_json, write_adapter, write_base, write_json

QUERY = "model.layers.0.self_attn.q_proj"
PEFT_QUERY = f"base_model.model.{QUERY}"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_base(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    write_adapter(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_every_projection_gets_alpha_over_r_times_b_a(tmp_path: Path) -> None:
    arrays = write_base(tmp_path / "base")
    change = write_adapter(tmp_path / "adapter", rank=4, lora_alpha=8)
    report = write_merged(tmp_path / "base", tmp_path / "adapter", tmp_path / "out", dtype="float32")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    for name, before in arrays.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        after = before
        if f"{module}.lora_A.weight" in change:
            after = before + 2.0 * change[f"{module}.lora_B.weight"] @ change[f"{module}.lora_A.weight"]
        # float32 sums in another order: a few units in the last place of values below 1.
        np.testing.assert_allclose(merged[name], after, atol=1e-6, rtol=0, err_msg=name)
    assert (report.tensors, report.changed_tensors) == (len(arrays), 14)


def test_rank_stabilised_lora_is_scaled_by_the_root_of_the_rank(base: Path, tmp_path: Path) -> None:
    change = write_adapter(tmp_path / "adapter", rank=4, lora_alpha=8, use_rslora=True)
    write_merged(base, tmp_path / "adapter", tmp_path / "out", dtype="float32")
    product = change[f"{PEFT_QUERY}.lora_B.weight"] @ change[f"{PEFT_QUERY}.lora_A.weight"]
    expected = load_file(base / "model.safetensors")[f"{QUERY}.weight"] + 4.0 * product
    merged = load_file(tmp_path / "out" / "model.safetensors")[f"{QUERY}.weight"]
    np.testing.assert_allclose(merged, expected, atol=1e-6, rtol=0)


def test_patterns_give_single_layers_their_own_rank_and_alpha(base: Path, tmp_path: Path) -> None:
    change = write_adapter(
        tmp_path / "adapter",
        rank=4,
        r=16,
        rank_pattern={"q_proj|k_proj|.*": 4},
        alpha_pattern={r"0\.self_attn\.q_proj": 40},
    )
    write_merged(base, tmp_path / "adapter", tmp_path / "out", dtype="float32")
    product = change[f"{PEFT_QUERY}.lora_B.weight"] @ change[f"{PEFT_QUERY}.lora_A.weight"]
    expected = load_file(base / "model.safetensors")[f"{QUERY}.weight"] + 10.0 * product
    merged = load_file(tmp_path / "out" / "model.safetensors")[f"{QUERY}.weight"]
    np.testing.assert_allclose(merged, expected, atol=1e-6, rtol=0)


def test_dora_gives_each_output_row_its_trained_length(base: Path, tmp_path: Path) -> None:
    lengths = np.linspace(0.5, 2.0, HIDDEN).astype(np.float32)
    extra = {
        f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_magnitude_vector": lengths for layer in range(2)
    }
    write_adapter(tmp_path / "adapter", modules=("self_attn.q_proj",), extra=extra, use_dora=True)
    write_merged(base, tmp_path / "adapter", tmp_path / "out", dtype="float32")
    merged = load_file(tmp_path / "out" / "model.safetensors")[f"{QUERY}.weight"]
    np.testing.assert_allclose(np.linalg.norm(merged, axis=1), lengths, rtol=1e-5)


def test_a_change_of_the_embedding_alone_unties_the_head(base: Path, tmp_path: Path) -> None:
    embedding = np.ones((300, HIDDEN), dtype=np.float32)
    extra = {"base_model.model.model.embed_tokens.weight": embedding}
    write_adapter(tmp_path / "adapter", extra=extra, modules_to_save=["embed_tokens"])
    write_merged(base, tmp_path / "adapter", tmp_path / "out", dtype="float32")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    before = load_file(base / "model.safetensors")["model.embed_tokens.weight"]
    np.testing.assert_array_equal(merged["model.embed_tokens.weight"], embedding)
    np.testing.assert_array_equal(merged["lm_head.weight"], before)
    assert read_json(tmp_path / "out" / "config.json")["tie_word_embeddings"] is False


def test_a_grown_vocabulary_is_written_with_its_new_size(base: Path, tmp_path: Path) -> None:
    embedding = np.ones((310, HIDDEN), dtype=np.float32)
    extra = {f"base_model.model.{name}.weight": embedding for name in ("model.embed_tokens", "lm_head")}
    write_adapter(tmp_path / "adapter", extra=extra)
    write_merged(base, tmp_path / "adapter", tmp_path / "out")
    assert read_json(tmp_path / "out" / "config.json")["vocab_size"] == 310
    assert load_file(tmp_path / "out" / "model.safetensors")["lm_head.weight"].shape == (310, HIDDEN)


def test_shards_hold_the_same_tensors_as_one_file(base: Path, adapter: Path, tmp_path: Path) -> None:
    write_merged(base, adapter, tmp_path / "one")
    report = write_merged(base, adapter, tmp_path / "many", max_shard_bytes=20_000)
    index = read_json(tmp_path / "many" / "model.safetensors.index.json")
    one = load_file(tmp_path / "one" / "model.safetensors")
    assert len({*index["weight_map"].values()}) > 3
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in one.values())
    for name, array in one.items():
        shard = load_file(tmp_path / "many" / index["weight_map"][name])
        np.testing.assert_array_equal(shard[name], array)
    again = write_merged(tmp_path / "many", None, tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "one" / "model.safetensors"
    ).read_bytes()
    assert again.tensors == report.tensors


def test_the_tokenizer_and_template_of_the_adapter_win_over_the_base(base: Path, adapter: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(base / name, adapter / name)
    (adapter / "chat_template.jinja").write_text("trained", encoding="utf-8")
    write_merged(base, adapter, tmp_path / "out")
    write_merged(base, adapter, tmp_path / "override", chat_template="given")
    assert (tmp_path / "out" / "chat_template.jinja").read_text(encoding="utf-8") == "trained"
    assert (tmp_path / "override" / "chat_template.jinja").read_text(encoding="utf-8") == "given"


def test_the_path_of_the_base_does_not_leave_this_machine(base: Path, adapter: Path, tmp_path: Path) -> None:
    write_json(base / "config.json", read_json(base / "config.json") | {"_name_or_path": "/home/someone/base"})
    write_merged(base, adapter, tmp_path / "out")
    assert "someone" not in (tmp_path / "out" / "config.json").read_text(encoding="utf-8")


def test_the_estimate_is_within_five_percent_of_what_is_written(base: Path, adapter: Path, tmp_path: Path) -> None:
    estimate = estimate_merged_bytes(base, adapter)
    written = write_merged(base, adapter, tmp_path / "out").size_bytes
    # 5 % is the promise for real models; the 200 bytes a tensor that headers may take weigh more in a tiny one.
    assert 0 <= estimate - written <= 0.05 * written + 200 * 20


def refused(base: Path, adapter: Path, out: Path, kind: type[FastftError]) -> str:
    with pytest.raises(kind) as caught:
        write_merged(base, adapter, out)
    assert not [path for path in out.parent.iterdir() if path.name.startswith((out.name, f".{out.name}"))]
    return str(caught.value)


def test_an_adapter_for_another_model_is_refused_with_both_shapes(base: Path, tmp_path: Path) -> None:
    write_base(tmp_path / "other", {name: np.tile(a, 2) for name, a in base_arrays().items()})
    write_adapter(tmp_path / "adapter")
    message = refused(tmp_path / "other", tmp_path / "adapter", tmp_path / "out", RecipeError)
    assert "14 of 14 tensors do not fit" in message
    assert "model.layers.0.mlp.down_proj.weight is (64, 96) in the adapter, (64, 192) in the base" in message


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"r": 8}, "rank 4, but adapter_config.json says 8"),
        ({"use_dora": True}, "no DoRA magnitude"),
    ],
)
def test_an_adapter_that_cannot_be_merged_is_refused(
    base: Path, tmp_path: Path, config: dict[str, object], named: str
) -> None:
    write_adapter(tmp_path / "adapter", **config)
    assert named in refused(base, tmp_path / "adapter", tmp_path / "out", RecipeError)


@pytest.mark.parametrize("name", ["base_model.model.model.layers.0.mlp.up_proj.lora_C.weight", "stray.weight"])
def test_an_adapter_tensor_that_nothing_consumes_is_refused(base: Path, tmp_path: Path, name: str) -> None:
    write_adapter(tmp_path / "adapter", extra={name: np.zeros((4, 4), dtype=np.float32)})
    assert name in refused(base, tmp_path / "adapter", tmp_path / "out", RecipeError)


def test_a_pickled_adapter_is_refused_unread(base: Path, adapter: Path, tmp_path: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    assert "pickle" in refused(base, adapter, tmp_path / "out", RecipeError)


def test_truncated_weights_are_refused_with_both_sizes(base: Path, adapter: Path, tmp_path: Path) -> None:
    file = base / "model.safetensors"
    size = file.stat().st_size
    os.truncate(file, size - 1)
    message = refused(base, adapter, tmp_path / "out", MachineError)
    assert f"needs {size} bytes, has {size - 1} bytes" in message


def test_a_header_that_lies_about_a_shape_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    file = base / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"shape":[300,64]', b'"shape":[301,64]'))
    assert "model.embed_tokens.weight has 76800 bytes" in refused(base, adapter, tmp_path / "out", MachineError)


def test_a_missing_shard_is_named(base: Path, adapter: Path, tmp_path: Path) -> None:
    write_merged(base, None, tmp_path / "many", max_shard_bytes=20_000)
    shard = sorted((tmp_path / "many").glob("*.safetensors"))[1]
    shard.unlink()
    assert shard.name in refused(tmp_path / "many", adapter, tmp_path / "out", MachineError)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_stops_the_merge(base: Path, tmp_path: Path, value: float) -> None:
    arrays = write_adapter(tmp_path / "adapter")
    arrays[f"{PEFT_QUERY}.lora_B.weight"][3, 1] = value
    save_file(arrays, tmp_path / "adapter" / "adapter_model.safetensors")
    message = refused(base, tmp_path / "adapter", tmp_path / "out", TrainingError)
    assert f"{QUERY}.weight: holds NaN or infinite values" in message


def test_a_weight_beyond_float16_is_refused_and_bfloat16_takes_it(base: Path, tmp_path: Path) -> None:
    arrays = write_adapter(tmp_path / "adapter")
    arrays[f"{PEFT_QUERY}.lora_B.weight"] *= 1e7
    save_file(arrays, tmp_path / "adapter" / "adapter_model.safetensors")
    assert "float16's 65504" in refused(base, tmp_path / "adapter", tmp_path / "out", RecipeError)
    assert write_merged(base, tmp_path / "adapter", tmp_path / "out", dtype="bfloat16").dtype == "bfloat16"


def test_a_quantized_base_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    quantized = {"quantization_config": {"quant_method": "bitsandbytes"}}
    write_json(base / "config.json", read_json(base / "config.json") | quantized)
    assert "(got bitsandbytes); give the 16-bit model" in refused(base, adapter, tmp_path / "out", RecipeError)


def test_an_existing_name_is_never_overwritten(base: Path, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(RecipeError, match="exists already"):
        write_merged(base, adapter, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_too_small_a_disk_is_refused_before_the_first_byte(tmp_path: Path) -> None:
    free = atomic.free_bytes(tmp_path)
    with (
        pytest.raises(MachineError, match=r"needs [\d,]+ bytes, [\d,]+ bytes are free"),
        atomic.staged_file(tmp_path / "deep" / "out", 2 * free),
    ):
        pytest.fail("the block must not start")
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_nothing_and_names_the_bytes(tmp_path: Path) -> None:
    def fill_the_disk() -> None:
        with atomic.staged_folder(tmp_path / "out", 10) as stage:
            (stage / "part").write_bytes(b"half")
            raise OSError(28, os.strerror(28))

    with pytest.raises(MachineError, match="No space left on device"):
        fill_the_disk()
    assert list(tmp_path.iterdir()) == []


def test_the_header_is_what_safetensors_itself_would_read(base: Path, adapter: Path, tmp_path: Path) -> None:
    write_merged(base, adapter, tmp_path / "out")
    data = (tmp_path / "out" / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    assert json.loads(data[8 : 8 + length])["__metadata__"] == {"format": "pt"}
