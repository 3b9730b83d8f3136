"""What a micro-batch costs a processor besides its tokens: `python -m benchmarks.micro_batches`.

Forward and backward pass of a random model of the quickstart's shape with a LoRA adapter of rank 16 in all projections,
in float32, with one row of 32 to 512 tokens. A straight line through the shortest times gives seconds a token and
seconds a micro-batch; of the latter fastft measures the reading of the weights itself (engine/products.py), the rest is
the start of some hundred small operations a layer. Writes benchmarks/micro_batches.json.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

TOKENS = (32, 64, 128, 256, 512)
ROUNDS = 5
LAYERS = 30


def main() -> None:
    """Measure, and keep the figures."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=LAYERS,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    projections = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
    model = get_peft_model(LlamaForCausalLM(config), LoraConfig(r=16, lora_alpha=32, target_modules=projections))
    best = {}
    for tokens in TOKENS:
        rows, seconds = torch.randint(0, 49152, (1, tokens)), []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            model(input_ids=rows, labels=rows).loss.backward()
            seconds.append(time.perf_counter() - began)
        best[tokens] = round(min(seconds), 4)
    # The best straight line by least squares of relative errors: the times span a factor of ten.
    weights = [1 / best[tokens] ** 2 for tokens in TOKENS]
    total = sum(weights)
    mean_x = sum(weight * tokens for weight, tokens in zip(weights, TOKENS, strict=True)) / total
    mean_y = sum(weight * best[tokens] for weight, tokens in zip(weights, TOKENS, strict=True)) / total
    covariance = sum(
        weight * (tokens - mean_x) * (best[tokens] - mean_y) for weight, tokens in zip(weights, TOKENS, strict=True)
    )
    slope = covariance / sum(weight * (tokens - mean_x) ** 2 for weight, tokens in zip(weights, TOKENS, strict=True))
    start = mean_y - slope * mean_x
    found = {
        "threads": torch.get_num_threads(),
        "seconds": best,
        "seconds_a_token": round(slope, 6),
        "seconds_a_micro_batch": round(start, 4),
        "the_same_in_tokens": round(start / slope, 1),
        "milliseconds_a_layer": round(1000 * start / LAYERS, 3),
    }
    print(json.dumps(found))
    (Path(__file__).parent / "micro_batches.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
