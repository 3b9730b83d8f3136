"""Peak memory of one rank: the parts of one GPU's peak, split as the sharding of the run splits them."""

from __future__ import annotations

from dataclasses import dataclass

from fastft.planning.memory import NF4_BYTES_PER_WEIGHT, MemorySettings, PeakMemory
from fastft.probe.architecture import Architecture
from fastft.recipe.shardings import FSDP2, Sharding

# deepspeed/runtime/zero/config.py, 0.19: max_live_parameters, reduce_bucket_size. In weights.
LIVE_WEIGHTS, BUCKET_WEIGHTS = 10**9, 5 * 10**8
# DeepSpeed keeps a float32 copy of each trained weight beside its optimizer states, and makes one of the gradients for
# the step (deepspeed/runtime/zero/stage_1_and_2.py, estimate_zero2_model_states_mem_needs).
MASTER_BYTES, STEP_GRADIENT_BYTES = 4, 4


@dataclass(frozen=True)
class States:
    """Bytes of weights, gradients and optimizer states: of a whole model, or of what one rank keeps of it."""

    weights_bytes: float
    gradients_bytes: float
    optimizer_bytes: float

    @property
    def total_bytes(self) -> float:
        return self.weights_bytes + self.gradients_bytes + self.optimizer_bytes

    def split(self, sharding: Sharding, ranks: int) -> States:
        """What one of `ranks` keeps (Rajbhandari et al. 2020, section 5, figure 1).

        With W, G, O bytes of weights, gradients and optimizer states and n ranks: DDP W + G + O, ZeRO-1 W + G + O/n,
        ZeRO-2 W + (G + O)/n, ZeRO-3 and FSDP2 (W + G + O)/n. With LoRA, G and O are of the adapter alone, and W is of
        the base and the adapter.
        """
        return States(
            self.weights_bytes / (ranks if sharding.splits_weights else 1),
            self.gradients_bytes / (ranks if sharding.splits_gradients else 1),
            self.optimizer_bytes / (ranks if sharding.splits_optimizer else 1),
        )


@dataclass(frozen=True)
class RankMemory:
    """Peak bytes of one rank. `buffers_bytes`: gathered weights, and gradients on their way."""

    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    buffers_bytes: int
    working_bytes: int
    device_bytes: int

    @property
    def peak_bytes(self) -> int:
        return sum(value for name, value in vars(self).items() if name != "device_bytes")

    @property
    def fits(self) -> bool:
        return self.peak_bytes <= self.device_bytes


def rank_memory(
    model: Architecture,
    settings: MemorySettings,
    peak: PeakMemory,
    sharding: Sharding,
    ranks: int,
    *,
    accumulates: bool,
) -> RankMemory:
    """The peak of one rank whose micro-batch takes `peak` on one GPU; what it works on is never split.

    Buffers. DDP: its buckets are a second copy of the gradients (torch.nn.parallel.DistributedDataParallel,
    gradient_as_bucket_view). ZeRO-1/2: one bucket. ZeRO-3: up to max_live_parameters gathered weights. FSDP2: two
    layers, the one that computes and the next, and embedding and output layer, which stay gathered. FSDP2 keeps whole
    gradients while they are accumulated. One rank alone splits and exchanges nothing.
    """
    trained = _trained_weights(model, settings)
    gradients = settings.trained_bytes * trained
    optimizer = float(peak.optimizer_bytes)
    if sharding.zero_stage and ranks > 1:
        optimizer += MASTER_BYTES * trained + (STEP_GRADIENT_BYTES * trained if settings.trained_bytes < 4 else 0)
    weights = peak.base_weights_bytes + peak.kept_weights_bytes + peak.adapter_bytes
    # With several ranks no gradient takes the room that activations leave: they are reduced while others are computed.
    whole = States(weights, gradients if ranks > 1 else peak.gradients_bytes, optimizer)
    own = whole.split(sharding, ranks)
    if sharding.name == FSDP2 and accumulates:
        own = States(own.weights_bytes, whole.gradients_bytes, own.optimizer_bytes)
    buffers = 0.0 if ranks == 1 else _buffers_bytes(model, settings, sharding, trained)
    return RankMemory(
        weights_bytes=round(own.weights_bytes),
        gradients_bytes=round(own.gradients_bytes),
        optimizer_bytes=round(own.optimizer_bytes),
        buffers_bytes=round(buffers),
        working_bytes=peak.activations_bytes + peak.logits_bytes + peak.workspace_bytes + peak.framework_bytes,
        device_bytes=peak.device_bytes,
    )


def gathered_bytes(model: Architecture, settings: MemorySettings) -> float:
    """All weights of the model as ranks exchange them: 4-bit ones stay 4-bit, adapters come with them."""
    adapter = 0 if settings.full_finetuning else settings.trained_bytes * _trained_weights(model, settings)
    return model.body_weights * _body_bytes(settings) + settings.weight_bytes * _other_weights(model) + adapter


def gradient_bytes(model: Architecture, settings: MemorySettings) -> float:
    """The gradients of all trained weights."""
    return float(settings.trained_bytes * _trained_weights(model, settings))


def _buffers_bytes(model: Architecture, settings: MemorySettings, sharding: Sharding, trained: int) -> float:
    bucket = settings.trained_bytes * min(trained, BUCKET_WEIGHTS)
    if not sharding.splits_weights:
        return float(bucket if sharding.zero_stage else settings.trained_bytes * trained)
    everything = gathered_bytes(model, settings)
    if sharding.zero_stage:
        return min(everything, everything / model.weights * LIVE_WEIGHTS) + bucket
    layers = model.body_weights * _body_bytes(settings) * min(2, model.layers) / model.layers
    return layers + settings.weight_bytes * _other_weights(model)


def _body_bytes(settings: MemorySettings) -> float:
    return NF4_BYTES_PER_WEIGHT if settings.load_in_4bit else settings.weight_bytes


def _other_weights(model: Architecture) -> int:
    return model.vocabulary_weights + model.small_weights


def _trained_weights(model: Architecture, settings: MemorySettings) -> int:
    return settings.trained_weights(model)
