"""How fast rows become ids and labels: fastft cold and warm beside the preparation of TRL's own SFTTrainer.

    python benchmarks/prepare_speed.py MODEL_FOLDER [--rows 50000] [--out benchmarks/prepare_speed.json]

All three in one process on the same rows of mixed lengths (log-normal, one to three exchanges). TRL gets the raw
messages, `assistant_only_loss` and a chat template with generation marks; what it makes is compared with fastft's.
Memory is what a process of fastft's holds of its own (RssAnon), for a fifth of the rows and for all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

# Both sides are timed with their libraries imported.
import pyarrow  # noqa: F401

from fastft.data.prepare import Prepared, prepare
from fastft.data.tokenizer import TokenizerFacts, load_tokenizer
from fastft.errors import Where
from fastft.recipe.model import DataSection

MAX_SEQ_LENGTH = 2048
# ChatML, which the SmolLM2 and Qwen models use; the marks are for TRL.
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content ~ '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content ~ '<|im_end|>' }}"
    "{% endif %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WORDS = [word for word in Path(__file__).read_text(encoding="utf-8").split() if "<|" not in word]


def write_rows(path: Path, count: int) -> None:
    """Conversations of 1 to 3 exchanges, some 200 words in the median."""
    source = random.Random(1)  # noqa: S311 -- the same rows each time
    with path.open("w", encoding="utf-8") as stream:
        for _ in range(count):
            # At most some 2,000 tokens, so that neither side drops or cuts a row.
            words = max(6, min(200, round(source.lognormvariate(4.2, 0.8))))
            messages = []
            for _ in range(source.choice((1, 1, 2, 3))):
                for role, share in (("user", 3), ("assistant", 2)):
                    content = " ".join(source.choices(WORDS, k=max(1, words // share)))
                    messages.append({"role": role, "content": content})
            stream.write(json.dumps({"messages": messages}) + "\n")


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """What `work` returns, its wall seconds and its CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    made = work()
    return made, time.perf_counter() - wall, time.process_time() - cpu


def private_bytes() -> int:
    """The memory of this process that no file backs, as Linux reports it."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


def with_fastft(
    folder: Path, facts: TokenizerFacts, name: str = "rows.jsonl", progress: Callable[[int], None] | None = None
) -> Prepared:
    data = DataSection(train=name, chat_template="chatml.jinja")
    return prepare(
        data,
        facts,
        max_seq_length=MAX_SEQ_LENGTH,
        seed=1,
        recipe_dir=folder,
        locate=lambda _key: Where("benchmark"),
        cache_dir=folder / "cache",
        progress=progress,
    )


def measured_growth(folder: Path, model_folder: Path, name: str) -> int:
    """By how many bytes private memory grows, at its peak, while the rows of file `name` are prepared."""
    facts = load_tokenizer(model_folder)
    before, peak = private_bytes(), 0

    def measure(_rows: int) -> None:
        nonlocal peak
        peak = max(peak, private_bytes())

    shutil.rmtree(folder / "cache", ignore_errors=True)
    with_fastft(folder, facts, name, measure)
    return peak - before


def with_trl(folder: Path, model_folder: Path) -> Any:
    """The rows of a freshly made SFTTrainer; only its constructor is timed."""
    import datasets
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.pad_token = tokenizer.unk_token
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=1, **shape))
    rows = datasets.Dataset.from_list([json.loads(line) for line in (folder / "rows.jsonl").open(encoding="utf-8")])
    config = SFTConfig(
        output_dir=str(folder / "trl"),
        assistant_only_loss=True,
        max_length=MAX_SEQ_LENGTH,
        report_to=[],
        use_cpu=True,
        bf16=False,
    )

    def construct() -> Any:
        return SFTTrainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer).train_dataset

    datasets.disable_progress_bars()
    return timed(construct)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model_folder", type=Path)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3, help="each side is timed this often in turn; its best counts")
    parser.add_argument("--out", type=Path, help="where to write the figures as JSON")
    asked = parser.parse_args()
    figures: dict[str, Any] = {
        "machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}",
        "load_at_start": round(os.getloadavg()[0], 1),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "rows.jsonl", asked.rows)
        write_rows(folder / "fifth.jsonl", asked.rows // 5)
        (folder / "chatml.jinja").write_text(
            TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "")
        )
        facts = load_tokenizer(asked.model_folder)
        rounds: dict[str, list[tuple[float, float]]] = {"fastft_cold": [], "fastft_warm": [], "trl": []}
        for _ in range(asked.rounds):
            shutil.rmtree(folder / "cache", ignore_errors=True)
            cold, *cold_seconds = timed(lambda: with_fastft(folder, facts))
            _, *warm_seconds = timed(lambda: with_fastft(folder, facts))
            rows, *trl_seconds = with_trl(folder, asked.model_folder)
            for label, seconds in zip(rounds, (cold_seconds, warm_seconds, trl_seconds), strict=True):
                rounds[label].append((round(seconds[0], 3), round(seconds[1], 3)))
        prepared = cold.train.rows
        same = sum(theirs == ours.input_ids.tolist() for theirs, ours in zip(rows["input_ids"], prepared, strict=False))
        figures |= {"rows": asked.rows, "tokens": prepared.tokens, "rows_with_the_same_ids": same}
        for label, measured in rounds.items():
            wall = min(seconds for seconds, _ in measured)
            times = round(min(seconds for seconds, _ in rounds["trl"]) / wall, 1)
            figures[label] = {"best_wall_seconds": wall, "times_as_fast": times, "wall_and_cpu_seconds": measured}
        with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as process:
            # A separate process for each: memory of one is not freed before the next.
            figures["private_growth_bytes"] = {
                str(count): process.submit(measured_growth, folder, asked.model_folder, file).result()
                for count, file in ((asked.rows // 5, "fifth.jsonl"), (asked.rows, "rows.jsonl"))
            }
    text = json.dumps(figures, indent=2)
    if asked.out:
        asked.out.write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
