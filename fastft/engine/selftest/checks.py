"""What `fastft doctor --train` proves: a tiny made-up model is trained, resumed and exported by fastft's own path."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fastft.data.encode import NO_LOSS
from fastft.engine.counting import CountingTrainer
from fastft.engine.export import export_weights, trained_reference
from fastft.engine.model import save_weights
from fastft.engine.reference import load_to_ask
from fastft.engine.sampler import EpochSampler
from fastft.engine.selftest.made_up import SEED, STEP, Bench, nothing
from fastft.errors import FastftError
from fastft.exports.card import CardFacts
from fastft.exports.job import MERGED, Job
from fastft.exports.parity import comparable
from fastft.probe.device import find_device
from fastft.probe.installation import Diagnosis
from fastft.probe.software import fix_command, guilty_package, version
from fastft.runs.checkpoints import newest_checkpoint

# How far two figures may differ that are equal in exact arithmetic: sums in another order in float32 (measured: 1e-6),
# and 8 bits of mantissa in bfloat16. A mean of means instead of a mean over tokens differs by 10 % on these rows.
FLOAT32, BFLOAT16 = 1e-3, 2e-2


# The outcome of a check: whether it holds, and the figures that show it.
Outcome = tuple[bool, str]


@dataclass(frozen=True)
class Check:
    """One promise that is tried; `packages` are to be changed when it is broken and nothing else can be blamed."""

    name: str
    try_it: Callable[[Bench], Outcome]
    packages: Sequence[str]


def examine(folder: Path, engine: str, say: Callable[[str], None]) -> list[Diagnosis]:
    """Each promise of training, tried with `engine` in `folder`; `say` is called with what is tried next.

    Where the device is not reached, or the model cannot be trained at all, the checks that stand on it are left out.
    """
    bench = Bench(folder, engine)
    findings: list[Diagnosis] = []
    for check in CHECKS:
        say(f"trying: {check.name}")
        findings.append(_tried(check, bench))
        if check in (DEVICE, FIRST) and findings[-1].state == "broken":
            break
    return findings


def _tried(check: Check, bench: Bench) -> Diagnosis:
    try:
        holds, detail = check.try_it(bench)
        packages = check.packages
    except Exception as error:  # a library of another version breaks in any way there is
        traceback.print_exc()
        said = " ".join(str(error).split())[:300]
        holds, detail = False, said if isinstance(error, FastftError) else f"{type(error).__name__}: {said}"
        guilty = _keyword_owner(error, bench) or guilty_package(error)
        packages = [guilty] if guilty else check.packages
    return (
        Diagnosis(check.name, "ok", detail) if holds else Diagnosis(check.name, "broken", detail, fix_command(packages))
    )


def _keyword_owner(error: Exception, bench: Bench) -> str | None:
    """The package whose class no longer knows a keyword that the plan passes."""
    owner, found, keyword = str(error).partition(".__init__() got an unexpected keyword argument ")
    if not isinstance(error, TypeError) or not found:
        return None
    calls = bench.job("keywords").plan.calls.in_order
    named = [call for call in calls if owner in call.name.split(".") or keyword.strip("'") in call.kwargs]
    return named[-1].name.split(".")[0] if named else "trl"


def _device(bench: Bench) -> Outcome:
    """The GPU that the driver reports is one that torch computes on."""
    device = find_device()
    if device.is_gpu and not bench.on_gpu:
        built = f"torch {torch.__version__}, built for CUDA {torch.version.cuda},"
        return False, f"{built} does not reach {device.name}: the driver may be too old for it"
    return True, f"torch {torch.__version__} computes on {device}"


def _whose_trainer(bench: Bench) -> Outcome:
    """Unsloth's own SFTTrainer under ours: its GPU class is called UnslothSFTTrainer, that for processors is marked."""
    base = CountingTrainer.__mro__[1]
    where = f"{base.__module__}.{base.__qualname__}"
    if bench.engine != "unsloth":
        return True, f"{where}, as the engine is {bench.engine}"
    ours = base.__name__.startswith("Unsloth") or "_unsloth_cpu" in vars(base)
    return ours, f"{where}, patched by Unsloth" if ours else f"{where} is the stock one: Unsloth did not patch it"


def _two_steps(bench: Bench) -> Outcome:
    """Two optimizer steps: the loss is a number, every layer's adapter moves, nothing of the base does."""
    seen = bench.trained
    losses = [step.loss for step in seen.steps]
    shown = ", ".join(f"{loss:.4f}" for loss in losses)
    if len(losses) != 2 or not all(math.isfinite(loss) for loss in losses):
        return False, f"2 finite losses expected, got {shown or 'none'}"
    now = dict(seen.model.named_parameters())
    trained = sum(weight.requires_grad for weight in now.values())
    wrong = next(_misplaced_moves(now, seen.frozen), None if trained else "nothing is trained")
    if wrong is not None:
        return False, wrong
    return True, f"losses {shown}; {trained} adapter matrices moved, {len(seen.frozen)} of the base did not"


def _misplaced_moves(now: dict[str, torch.Tensor], frozen: dict[str, torch.Tensor]) -> Iterator[str]:
    """Each weight of the base that training moved, and each adapter that it did not move."""
    for name, before in frozen.items():
        if not torch.equal(before, now[name].detach()):
            yield f"{name} of the base moved"
    for name, weight in now.items():
        if weight.requires_grad and "lora_B" in name and not weight.any():
            yield f"{name} did not move"


def _loss_mask(bench: Bench) -> Outcome:
    """The loss of the first step against one by hand: each row alone, no padding, only tokens that carry loss."""
    job = bench.job("by-hand")
    model, _ = job.load()
    rows = job.prepared.train.rows
    order = list(EpochSampler(len(rows), SEED, None, STEP, grouped=False))[:STEP]
    total, count = 0.0, 0
    model.eval()
    for index in order:
        row = rows[index]
        ids = torch.tensor([row.input_ids], device=model.device)
        labels = torch.tensor(row.labels[1:], device=model.device)
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        loss = torch.nn.functional.cross_entropy(logits, labels, ignore_index=NO_LOSS, reduction="sum")
        total, count = total + float(loss), count + int((labels != NO_LOSS).sum())
    by_hand, trained = total / count, bench.trained.steps[0].loss
    return _near(by_hand, trained, _tolerance(bench)), f"loss {trained:.4f}, {by_hand:.4f} by hand over {count} tokens"


def _accumulation(bench: Bench) -> Outcome:
    """One step of 4 rows at once, and of 4 times 1 row: the same loss and the same gradient."""
    whole = bench.trained.steps[0]
    job = bench.job("accumulated", per_device_train_batch_size=1, gradient_accumulation_steps=STEP)
    parts = job.train(*job.load())[0]
    detail = f"loss {whole.loss:.4f} in 4 x 1 and {parts.loss:.4f} in 1 x 4"
    norms = (whole.grad_norm or 0.0, parts.grad_norm or 0.0)
    detail += f", gradient norm {norms[0]:.4f} and {norms[1]:.4f}"
    # The norm gathers the rounding of every matrix: twice the room.
    return _near(whole.loss, parts.loss, _tolerance(bench)) and _near(*norms, 2 * _tolerance(bench)), detail


def _packing(bench: Bench) -> Outcome:
    """One packed example is changed; nothing may move in the others of its row."""
    job = bench.job("packed", packing=True, per_device_train_batch_size=1)
    choice = job.plan.choices.packing
    if not choice.value:
        return True, f"not active here: {choice.reason}"
    trainer = job.trainer()
    for batch in trainer.get_train_dataloader():
        values = {key: value for key, value in batch.items() if key != "labels"}
        starts = (values["position_ids"][0] == 0).nonzero().flatten().tolist()
        if len(starts) > 1:
            break
    else:
        return False, "no row holds two examples: nothing is packed"
    model = trainer.model.eval()
    changed = values["input_ids"].clone()
    # Ids 32 to 127 are letters of the byte-level alphabet: any of them is another token than a special one.
    changed[0, : starts[1]] = (changed[0, : starts[1]] + 1) % 96 + 32
    with torch.no_grad():
        before = model(**values, use_cache=False).logits[0]
        after = model(**{**values, "input_ids": changed}, use_cache=False).logits[0]
    apart = (before - after).abs().amax(dim=-1)
    inside, beyond = float(apart[: starts[1]].max()), float(apart[starts[1] :].max())
    detail = f"one of {len(starts)} packed examples changed: its logits move by {inside:.2g}, others' by {beyond:.2g}"
    return beyond < FLOAT32 * inside, detail


def _quantization(bench: Bench) -> Outcome:
    """Weights in 4 bits and back by the kernels of this device; on a GPU an adapter on such weights is trained too."""
    if version("bitsandbytes") is None:
        return True, "bitsandbytes is not installed: only needed for 4-bit weights and 8-bit optimizers"
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    device = "cuda" if bench.on_gpu else "cpu"
    weights = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).to(device)
    stored, state = quantize_4bit(weights, quant_type="nf4")
    error = float((dequantize_4bit(stored, state) - weights).abs().mean())
    detail = f"4-bit weights differ by {error:.3f} of a standard deviation on average"
    if bench.on_gpu:
        job = bench.job("in-4-bit", in_4bit=True)
        loss = job.train(*job.load())[-1].loss
        detail += f"; an adapter on them trains, loss {loss:.4f}"
        error = error if math.isfinite(loss) else math.inf
    # 16 levels for normal numbers (Dettmers et al. 2023, QLoRA); measured here: 0.07.
    return error < 0.1, detail


def _resume(bench: Bench) -> Outcome:
    """Stopped after the first step and resumed, against uninterrupted: the same adapter.

    With gradient checkpointing, which nothing else here tries: on a GPU, Unsloth's moves activations to main memory.
    """
    job = bench.job("resumed", gradient_checkpointing="unsloth" if bench.engine == "unsloth" else True)
    first = job.train(*job.load(), stop=True)
    checkpoint, _ = newest_checkpoint(job.run)
    if checkpoint is None or len(first) != 1:
        return False, f"a stop after the first step left {checkpoint or 'no checkpoint'} and {len(first)} steps"
    model, tokenizer = job.load()
    second = job.train(model, tokenizer, checkpoint)
    here, there = (
        torch.cat([weight.detach().flatten().float() for weight in each.parameters() if weight.requires_grad])
        for each in (model, bench.trained.model)
    )
    apart = float((here - there).norm() / there.norm())
    losses = (second[-1].loss, bench.trained.steps[-1].loss)
    # On a processor every bit is the same. A GPU adds in any order, and Adam makes a whole step of the sign of noise;
    # without the optimizer's state they would differ by 0.2 of their norm (measured on a processor).
    same = apart <= (0.1 if bench.on_gpu else 0.0) and _near(*losses, _tolerance(bench))
    return same, f"loss {losses[0]:.4f} resumed, {losses[1]:.4f} in one go; adapters {apart:.1g} of their norm apart"


def _export(bench: Bench) -> Outcome:
    """The adapter reloaded by PEFT says what the trained model says; merged (and GGUF) weights pass the parity gate."""
    seen = bench.trained
    folder = save_weights(seen.model, seen.tokenizer, seen.job.plan, seen.job.run)
    # On the GPU, because Unsloth made the class of its rotary embedding one that computes nowhere else.
    reloaded = load_to_ask(bench.folder / "model", folder, torch.float32).eval()
    ids = torch.tensor([seen.job.prepared.train.rows[0].input_ids.tolist()])
    seen.model.eval()
    with torch.no_grad():
        trained = seen.model(input_ids=ids.to(seen.model.device), use_cache=False).logits[0].float().cpu()
        again = reloaded(input_ids=ids.to(reloaded.device), use_cache=False).logits[0].cpu()
    apart = float((trained - again).abs().max())
    # A whole model of 16-bit sums is apart by more than one of them.
    if apart > 5 * _tolerance(bench) * float(trained.abs().max()):
        return False, f"the reloaded adapter's logits differ by {apart:.2g} from the trained model's"
    kinds = (MERGED, "q8_0") if version("xllamacpp") else (MERGED,)
    job = Job(bench.folder / "model", folder, seen.job.run.exports, kinds, name="selftest")
    prepared = seen.job.prepared
    examples = [] if prepared.eval is None else prepared.eval.examples
    ends = [seen.tokenizer.eos_token_id]
    card = CardFacts("a made-up model", None, None, None)
    reference = trained_reference(seen.model, seen.tokenizer, comparable(examples), ends, nothing)
    export_weights(job, reference, card, nothing)
    return True, f"adapter, {' and '.join(kinds)} say what the trained model says"


def _tolerance(bench: Bench) -> float:
    return BFLOAT16 if bench.on_gpu else FLOAT32


def _near(one: float, other: float, tolerance: float) -> bool:
    return math.isclose(one, other, rel_tol=tolerance)


UNSLOTH = ("unsloth", "unsloth_zoo")
DEVICE = Check("torch and driver", _device, ("torch",))
FIRST = Check("two optimizer steps", _two_steps, (*UNSLOTH, "peft"))
CHECKS = (
    DEVICE,
    Check("trainer", _whose_trainer, (*UNSLOTH, "trl")),
    FIRST,
    Check("loss mask", _loss_mask, (*UNSLOTH, "trl")),
    Check("accumulation", _accumulation, (*UNSLOTH, "transformers", "accelerate")),
    Check("packing", _packing, (*UNSLOTH, "trl", "transformers")),
    Check("quantization", _quantization, ("bitsandbytes",)),
    Check("resume", _resume, ("transformers", "accelerate")),
    Check("export and reload", _export, ("peft", "safetensors")),
)
