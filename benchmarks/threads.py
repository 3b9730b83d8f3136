"""What waiting threads cost a training step on a CPU that has other work too: `python benchmarks/threads.py`.

A forward and backward pass of a random model of the quickstart's shape (4 rows of 66 tokens, float32), with OpenMP's
waiting threads spinning ("active") and sleeping ("passive", what fastft sets where the cores are busy), alone and
beside one busy process for each core. Writes benchmarks/threads.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

STEP = """
import sys, time
import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
                     num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True)
model = LlamaForCausalLM(config).requires_grad_(False)
ids = torch.randint(0, 49152, (4, 66))
embedded = model.get_input_embeddings()(ids).detach().requires_grad_(True)

def step():
    model(inputs_embeds=embedded, labels=ids).loss.backward()

step()
begin = time.perf_counter()
for _ in range(5):
    step()
print((time.perf_counter() - begin) / 5)
"""


def seconds_a_step(policy: str) -> float:
    """The mean wall time of a step in a separate process."""
    environment = {**os.environ, "OMP_WAIT_POLICY": policy}
    done = subprocess.run([sys.executable, "-c", STEP], env=environment, capture_output=True, text=True, check=True)
    return round(float(done.stdout.split()[-1]), 2)


def main() -> None:
    """Measure both policies, twice in turn, alone and beside busy processes; print and write the figures."""
    cores = len(os.sched_getaffinity(0))
    figures: dict[str, dict[str, list[float]]] = {}
    for load in ("alone", "beside busy processes"):
        busy = (
            []
            if load == "alone"
            else [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
        )
        try:
            turns = [(policy, seconds_a_step(policy)) for _ in range(2) for policy in ("active", "passive")]
        finally:
            for process in busy:
                process.kill()
        figures[load] = {
            name: [seconds for policy, seconds in turns if policy == name] for name in ("active", "passive")
        }
    result = {"command": "python benchmarks/threads.py", "cores": cores, "seconds_a_step": figures}
    print(json.dumps(result, indent=2))
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
