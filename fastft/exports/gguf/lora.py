"""A LoRA adapter as a GGUF file of its own, which llama.cpp adds to a base model while it answers.

The format: `llama_adapter_lora_init` in llama.cpp's src/llama-adapter.cpp.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastft.errors import Problem, RecipeError, Where
from fastft.exports.adapter import LowRank
from fastft.exports.gguf.architectures import find_architecture
from fastft.exports.trained import EMBEDDING, TrainedWeights
from fastft.files.atomic import staged_file
from fastft.files.tensors import Floats
from fastft.inference.gguf_header import GgufHeader


def write_lora(base: Path, adapter: Path, header: GgufHeader, out_file: Path) -> None:
    """Write the adapter on `base` as the new file `out_file`, in float32, for the GGUF file of the base with `header`.

    Raises:
        RecipeError: llama.cpp cannot add it to a base while it answers, or that file is of another model.
        MachineError: a file is missing or damaged, or the disk too small.
        TrainingError: a weight is NaN or infinite.
    """
    import gguf

    with TrainedWeights(base, adapter) as trained:
        changes = _low_rank(trained, adapter)
        architecture = find_architecture(trained.config, base / "config.json")
        heads = trained.config["num_attention_heads"]
        kv_heads = trained.config.get("num_key_value_heads") or heads
        kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
        names = gguf.get_tensor_name_map(kinds[architecture.name], trained.config["num_hidden_layers"])
        shapes = {tensor.name: tensor.shape for tensor in header.tensors}
        writer = gguf.GGUFWriter(None, architecture.name)
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string("adapter.type", "lora")
        # 0: the matrices hold their scale, which can differ from one to the next.
        writer.add_float32("adapter.lora.alpha", 0.0)
        size = 4096
        for name, change in changes.items():
            target = names.get_name(name, try_suffixes=(".weight",))
            if header.architecture != architecture.name or target is None or shapes.get(target) != change.shape:
                wrong = f"is for another model than the GGUF file: {name} does not fit"
                raise _refused(adapter, wrong, "name the GGUF file of the base that it was trained on")
            assert trained.adapter is not None  # noqa: S101  _low_rank read it
            a, b, _ = change.load(trained.adapter.weights)
            if not (np.isfinite(a).all() and np.isfinite(b).all()):
                raise _refused(adapter, f"holds NaN or infinite values in {name}", "use an earlier checkpoint")
            if architecture.interleaved_rope and ".q_proj." in name:
                b = _interleaved(b, heads)
            elif architecture.interleaved_rope and ".k_proj." in name:
                b = _interleaved(b, kv_heads)
            writer.add_tensor(f"{target}.lora_a", np.ascontiguousarray(a, dtype=np.float32))
            writer.add_tensor(f"{target}.lora_b", np.ascontiguousarray(b, dtype=np.float32))
            size += a.nbytes + b.nbytes + 256
        with staged_file(out_file, size) as stage:
            writer.write_header_to_file(stage)
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()


def _low_rank(trained: TrainedWeights, adapter: Path) -> dict[str, LowRank]:
    found = trained.adapter
    if found is None or found.replaced or EMBEDDING in found.low_rank:
        wrong = "trains an embedding or whole tensors, which llama.cpp cannot exchange while it answers"
        raise _refused(adapter, wrong, "serve it alone: fastft serve with its path")
    if any(change.magnitude is not None for change in found.low_rank.values()):
        wrong = "is a DoRA adapter, which llama.cpp cannot add to a base"
        raise _refused(adapter, wrong, "serve it alone: fastft serve with its path")
    return found.low_rank


def _interleaved(rows: Floats, heads: int) -> Floats:
    """The rows of each head as llama.cpp rotates them: neighbours instead of halves."""
    parts = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return parts.swapaxes(1, 2).reshape(rows.shape)


def _refused(adapter: Path, wrong: str, instead: str) -> RecipeError:
    return RecipeError(Problem(Where(str(adapter)), "", wrong, instead))
