"""Whether each GGUF architecture and rotary scaling is what llama.cpp's converter and transformers make of it.

    python -m benchmarks.gguf_reference --llama-cpp DIR     writes gguf_reference.json here

The models are tiny and random, with an adapter (tests/exports/families.py). fastft writes base + adapter as f32; the
converter of the llama.cpp checkout DIR writes the merged model, without its vocabulary. Compared are every tensor,
every key of the architecture, and the logits of 200 tokens: llama.cpp's of the file, transformers' of the merged model.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from fastft.exports.gguf.writer import write_gguf
from fastft.exports.merged import write_merged
from fastft.files.atomic import read_json, write_json
from fastft.inference.llamacpp import GgufModel
from tests.exports.families import FAMILIES, SCALED, VOCABULARY, write_family


def convert(merged: Path, out: Path) -> Any:
    """The file that llama.cpp's converter makes of `merged`."""
    from gguf import GGUFReader, LlamaFileType

    conversion, base = importlib.import_module("conversion"), importlib.import_module("conversion.base")
    config = base.ModelBase.load_hparams(merged, False)
    kind = conversion.get_model_class(config["architectures"][0])
    kind.set_vocab = lambda _: None  # made-up tokenizers have no name there; ids are proven in another place
    with torch.inference_mode():
        kind(merged, LlamaFileType.ALL_F32, out).write()
    return GGUFReader(out)


def differences(ours: Any, theirs: Any) -> dict[str, Any]:
    """The equal tensors, the largest difference, and the keys that differ as [ours, theirs]."""
    one, other = ({tensor.name: tensor.data for tensor in file.tensors} for file in (ours, theirs))
    keys, right = (
        {name: field.contents() for name, field in file.fields.items() if name.split(".")[0] not in
         ("general", "tokenizer", "GGUF")} for file in (ours, theirs)
    )  # fmt: skip
    return {
        "tensors": len(other),
        "same_names": one.keys() == other.keys(),
        "equal": sum(np.array_equal(one[name], other[name]) for name in one.keys() & other.keys()),
        "largest_difference": max(float(np.abs(one[n] - other[n]).max()) for n in one.keys() & other.keys()),
        "keys": len(right),
        "other_keys": {
            name: [keys.get(name), right.get(name)]
            for name in sorted(keys | right)
            if keys.get(name) != right.get(name)
        },
    }


def logits(file: Path, merged: Path) -> dict[str, float]:
    """How far llama.cpp's logits are from transformers', and their spread."""
    ids = np.random.default_rng(0).integers(3, VOCABULARY, 200).tolist()
    model = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        right = model(torch.tensor([ids])).logits[0].double().log_softmax(-1).numpy()
    with GgufModel(file, context_tokens=256) as loaded:
        found = torch.tensor(np.asarray(loaded.logits(ids))).double().log_softmax(-1).numpy()
    divergence = (np.exp(right) * (right - found)).sum(axis=1)
    agreement = (right.argmax(axis=1) == found.argmax(axis=1)).mean()
    return {"top1_agreement": float(agreement), "mean_kl": float(divergence.mean()), "kl": float(divergence.max())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-cpp", type=Path, required=True, help="a llama.cpp checkout")
    # Before the installed gguf package: the converter needs that of its own checkout.
    sys.path.insert(0, str(parser.parse_args().llama_cpp / "gguf-py"))
    sys.path.append(str(parser.parse_args().llama_cpp))
    from gguf import GGUFReader

    entries = []
    for name in (*FAMILIES, *SCALED):
        with tempfile.TemporaryDirectory() as folder:
            base, adapter = write_family(Path(folder), name)
            config = read_json(base / "config.json") or {}
            write_json(base / "config.json", {"pad_token_id": 0, **config})
            merged, file = Path(folder) / "merged", Path(folder) / "ours.gguf"
            write_merged(base, adapter, merged, dtype="float32")
            write_gguf(base, adapter, file, "f32")
            compared = differences(GGUFReader(file), convert(merged, Path(folder) / "theirs.gguf"))
            entry = {"model": name, "class": config["architectures"][0], **compared, **logits(file, merged)}
        entries.append(entry)
        print(json.dumps(entry))
    record = {"command": "python -m benchmarks.gguf_reference --llama-cpp llama.cpp", "models": entries}
    Path(__file__).with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
