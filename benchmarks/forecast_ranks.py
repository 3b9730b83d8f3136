"""What two processes keep of a small model under FSDP2, on a processor: `python benchmarks/forecast_ranks.py`.

Writes forecast_ranks.json: bytes of weights, gradients and optimizer states of rank 0, counted tensor by tensor after a
step of torch's own `fully_shard` on gloo, with the layers and the model itself as units. Takes 10 seconds.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
import torch.multiprocessing
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).parent
RANKS = 2
SIZES = {
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "tie_word_embeddings": False,
}


def count(tensors: list[torch.Tensor]) -> int:
    """Bytes that this process keeps of the tensors."""
    own = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    return sum(tensor.numel() * tensor.element_size() for tensor in own if tensor.dim())


def one_rank(rank: int) -> None:
    """A step of one process; rank 0 writes what it keeps."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29717"}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=RANKS)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (RANKS,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters())
    ids = torch.randint(0, SIZES["vocab_size"], (2, 16))
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    kept = {
        "weights_bytes": count(list(model.parameters())),
        "gradients_bytes": count([weight.grad for weight in model.parameters() if weight.grad is not None]),
        "optimizer_bytes": count([one for state in optimizer.state.values() for one in state.values()]),
    }
    if rank == 0:
        found = {"ranks": RANKS, "torch": torch.__version__, "config": {"model_type": "llama", **SIZES}, "fsdp2": kept}
        (HERE / "forecast_ranks.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.multiprocessing.spawn(one_rank, nprocs=RANKS)
