"""The optimizers that `train.optim` can name: one row says all that any module asks of one.

Every name of transformers' `OptimizerNames` has a row (a test compares them): it is run, or refused with the reason.
So have Muon and Sophia.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

Value = bool | int | float | str


@dataclass(frozen=True)
class Argument:
    """A key of `[train.optim_args]` that reaches an optimizer."""

    kind: type[bool | int | float | str]
    default: Value | None
    """What the optimizer takes where the recipe says nothing; None: it goes without."""
    least: float = -math.inf
    most: float = math.inf
    choices: tuple[str, ...] = ()
    needs: str = ""
    """Another argument that must be given beside it, and not be 0."""
    state_bytes: float = 0.0
    """Bytes of state that it adds to each trained weight, unless it is 0 or false."""

    def refusal(self, value: Value) -> str | None:
        """What to write instead of `value`; None where it is one of those allowed."""
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if self.choices:
            return None if value in self.choices else " or ".join(f'"{choice}"' for choice in self.choices)
        if self.kind is bool:
            return None if isinstance(value, bool) else "true or false"
        if is_number and self.least <= value <= self.most and (self.kind is float or isinstance(value, int)):  # type: ignore[operator]
            return None
        name = "a number" if self.kind is float else "a whole number"
        most = "" if math.isinf(self.most) else f" to {self.most:g}"
        return f"{name} from {self.least:g}{most or ' on'}"


@dataclass(frozen=True)
class Optimizer:
    """One optimizer: check, plan, memory forecast, `explain` and the docs read it here."""

    name: str
    """What the recipe calls it."""
    upstream: str | None
    """What transformers calls it (`OptimizerNames`); None where transformers has it not, and `class_name` says what."""
    family: str
    """The algorithm: the same one may come fused, in 8 bits or paged."""
    state_bytes: float
    """Bytes of state a trained weight; of low-rank ones the most, as if nothing were projected."""
    packages: tuple[str, ...] = ()
    """What must be installed besides torch and transformers, as pip names it."""
    paged: bool = False
    """Its state moves to main memory when the GPU is full; a processor has nothing to move it from."""
    on_cpu: str | None = None
    """The row that a processor takes where the recipe leaves the choice open; None: this one."""
    takes_betas: bool = False
    """`adam_beta1` and `adam_beta2` reach it."""
    takes_epsilon: bool = False
    """`adam_epsilon` reaches it."""
    takes_weight_decay: bool = True
    """`weight_decay` reaches it."""
    arguments: Mapping[str, Argument] = field(default_factory=dict)
    """What `[train.optim_args]` may say."""
    class_name: str = ""
    """The class that is called where transformers has no name for it."""
    fixed: Mapping[str, Value] = field(default_factory=dict)
    """Keywords of that class that fastft sets, unless `[train.optim_args]` does."""
    matrices_only: bool = False
    """It moves matrices alone: no bias, magnitude or norm."""
    whole_layers: bool = False
    """It projects the gradients of whole layers to a low rank, so it needs full fine-tuning."""
    schedules_itself: bool = False
    """It averages weights instead of lowering the learning rate: the schedule is constant, the warm-up its own."""
    warms_up: bool = False
    """`warmup_steps` reaches it although the schedule is constant."""
    state_classes: tuple[str, ...] = ()
    """Classes of which its state holds objects: what a checkpoint may hold besides tensors."""
    compiles: bool = False
    """It compiles its step: a C++ compiler must be there on a processor."""
    refused: str = ""
    """Why it is not run, although transformers knows it."""
    instead: str = ""
    """What to write instead of a refused one."""

    def state_bytes_with(self, given: Mapping[str, Value]) -> float:
        """Bytes of state a trained weight with these `[train.optim_args]`."""
        return self.state_bytes + sum(self.arguments[name].state_bytes for name, value in given.items() if value)


_BITSANDBYTES = ("bitsandbytes",)
_FUSED = "adamw_torch_fused"


def _share(default: float, state_bytes: float = 0.0) -> Argument:
    return Argument(float, default, least=0.0, most=1.0, state_bytes=state_bytes)


def _adamw(
    name: str,
    state_bytes: float,
    packages: tuple[str, ...] = (),
    on_cpu: str | None = None,
    arguments: Mapping[str, Argument] | None = None,
    *,
    compiles: bool = False,
) -> Optimizer:
    return Optimizer(
        name,
        name,
        "AdamW",
        state_bytes,
        packages,
        name.startswith("paged_"),
        on_cpu,
        takes_betas=True,
        takes_epsilon=True,
        arguments=arguments or {},
        compiles=compiles,
    )


def _ademamix(name: str, state_bytes: float) -> Optimizer:
    arguments = {
        "beta3": _share(0.9999),
        "alpha": Argument(float, 5.0, least=0.0),
        "t_alpha": Argument(int, None, least=1),
        "t_beta3": Argument(int, None, least=1),
    }
    return Optimizer(
        name,
        name,
        "AdEMAMix",
        state_bytes,
        _BITSANDBYTES,
        name.startswith("paged_"),
        takes_betas=True,
        takes_epsilon=True,
        arguments=arguments,
    )


def _lion(name: str, state_bytes: float) -> Optimizer:
    paged = name.startswith("paged_")
    return Optimizer(name, name, "Lion", state_bytes, _BITSANDBYTES, paged, takes_betas=True)


def _schedule_free(name: str, family: str, state_bytes: float, *, adam: bool, warms_up: bool) -> Optimizer:
    arguments = {"r": Argument(float, 0.0, least=0.0), "weight_lr_power": Argument(float, 2.0, least=0.0)}
    return Optimizer(
        name,
        name,
        f"schedule-free {family}",
        state_bytes,
        ("schedulefree",),
        takes_betas=adam,
        takes_epsilon=adam,
        arguments=arguments,
        schedules_itself=True,
        warms_up=warms_up,
    )


def _galore(name: str, family: str, state_bytes: float) -> Optimizer:
    arguments = {
        "rank": Argument(int, 128, least=1),
        "update_proj_gap": Argument(int, 200, least=1),
        "scale": Argument(float, 0.25, least=0.0),
        "proj_type": Argument(str, "std", choices=("std", "reverse_std", "right", "left", "full")),
    }
    return Optimizer(
        name,
        name,
        f"GaLore {family}",
        state_bytes,
        ("galore-torch",),
        takes_weight_decay=False,
        arguments=arguments,
        whole_layers=True,
        state_classes=("galore_torch.galore_projector.GaLoreProjector",),
    )


def _refused(name: str, family: str, why: str, instead: str) -> Optimizer:
    return Optimizer(name, name, family, 0.0, takes_betas=True, takes_epsilon=True, refused=why, instead=instead)


_OTHER_DEVICE = "fastft trains on NVIDIA GPUs and processors alone"
_LAYERWISE = (
    "it steps within the backward pass: no micro-batches can be added up, and its state is in no checkpoint, so that a"
    " run could not be resumed"
)
# AdamW keeps two moments, Lion one, AdEMAMix three; in 8 bits each takes a byte and its share of block constants
# (bitsandbytes: one float32 for 256 values). Tensors of less than 4096 weights keep float32 states.
_ROWS = (
    _adamw("adamw_torch", 8.0, on_cpu=_FUSED),
    _adamw(_FUSED, 8.0),
    _adamw("adamw_8bit", 2.03, _BITSANDBYTES, on_cpu=_FUSED),
    _adamw("adamw_bnb_8bit", 2.03, _BITSANDBYTES),
    _adamw("paged_adamw_8bit", 2.03, _BITSANDBYTES),
    _adamw("paged_adamw_32bit", 8.0, _BITSANDBYTES),
    # torchao: constants of 256 values for 8 bits, and of 128 for 4 (torchao 0.18, optim/subclass_*.py). transformers
    # passes its block_size as a text, which torchao cannot take.
    _adamw("adamw_torch_8bit", 2.03, ("torchao",), compiles=True),
    _adamw("adamw_torch_4bit", 1.06, ("torchao",), compiles=True),
    _ademamix("ademamix", 12.0),
    _ademamix("ademamix_8bit", 3.05),
    _ademamix("paged_ademamix_32bit", 12.0),
    _ademamix("paged_ademamix_8bit", 3.05),
    _lion("lion_32bit", 4.0),
    _lion("lion_8bit", 1.02),
    _lion("paged_lion_32bit", 4.0),
    _lion("paged_lion_8bit", 1.02),
    # torch.optim.Muon keeps one momentum; "match_rms_adamw" makes its steps as large as AdamW's, so that the learning
    # rates of LoRA hold (Liu et al. 2025, "Muon is Scalable for LLM Training", section 2.2).
    Optimizer(
        "muon",
        None,
        "Muon",
        4.0,
        arguments={
            "momentum": _share(0.95),
            "nesterov": Argument(bool, True),
            "ns_steps": Argument(int, 5, least=1, most=99),
            "adjust_lr_fn": Argument(str, "match_rms_adamw", choices=("match_rms_adamw", "original")),
        },
        class_name="torch.optim.Muon",
        fixed={"adjust_lr_fn": "match_rms_adamw"},
        matrices_only=True,
    ),
    # Defazio et al. 2024, "The Road Less Scheduled": the sequence z beside the weights, and the second moment.
    _schedule_free("schedule_free_adamw", "AdamW", 8.0, adam=True, warms_up=True),
    _schedule_free("schedule_free_radam", "RAdam", 8.0, adam=True, warms_up=False),
    _schedule_free("schedule_free_sgd", "SGD", 4.0, adam=False, warms_up=True),
    # transformers makes a text "false" of kahan_sum and decouple_lr true: not offered.
    Optimizer(
        "stable_adamw",
        "stable_adamw",
        "StableAdamW",
        8.0,
        ("torch-optimi",),
        takes_betas=True,
        takes_epsilon=True,
        arguments={"max_lr": Argument(float, None, least=0.0)},
    ),
    # Row and column sums instead of squares (Shazeer and Stern 2018): next to nothing for a matrix.
    Optimizer("adafactor", "adafactor", "Adafactor", 0.02),
    Optimizer(
        "adagrad",
        "adagrad",
        "Adagrad",
        4.0,
        arguments={"lr_decay": Argument(float, 0.0, least=0.0), "eps": Argument(float, 1e-10, least=0.0)},
    ),
    Optimizer(
        "rmsprop",
        "rmsprop",
        "RMSprop",
        4.0,
        arguments={
            "alpha": _share(0.99),
            "eps": Argument(float, 1e-8, least=0.0),
            "momentum": _share(0.0, 4.0),
            "centered": Argument(bool, False, state_bytes=4.0),
        },
    ),
    # transformers passes their arguments as texts, which bitsandbytes cannot take: none are offered.
    Optimizer("rmsprop_bnb", "rmsprop_bnb", "RMSprop", 4.0, _BITSANDBYTES),
    Optimizer("rmsprop_bnb_32bit", "rmsprop_bnb_32bit", "RMSprop", 4.0, _BITSANDBYTES),
    Optimizer("rmsprop_bnb_8bit", "rmsprop_bnb_8bit", "RMSprop", 1.02, _BITSANDBYTES),
    Optimizer(
        "sgd",
        "sgd",
        "SGD",
        0.0,
        arguments={
            "momentum": _share(0.0, 4.0),
            "nesterov": Argument(bool, False, needs="momentum"),
        },
    ),
    _galore("galore_adamw", "AdamW", 8.0),
    _galore("galore_adafactor", "Adafactor", 0.02),
    Optimizer(
        "apollo_adamw",
        "apollo_adamw",
        "APOLLO AdamW",
        8.0,
        ("apollo-torch",),
        takes_weight_decay=False,
        arguments={
            "rank": Argument(int, 128, least=1),
            "update_proj_gap": Argument(int, 200, least=1),
            "scale": Argument(float, 1.0, least=0.0),
            "scale_type": Argument(str, "channel", choices=("channel", "tensor")),
            "proj_type": Argument(str, "std", choices=("std", "reverse_std", "right", "left")),
        },
        whole_layers=True,
        state_classes=("apollo_torch.random_projector.GradientProjector",),
    ),
    _refused(
        "galore_adamw_8bit",
        "GaLore AdamW",
        "galore-torch 1.0 has it for GPUs alone, and nobody has resumed a run with it and bitsandbytes 0.50",
        "galore_adamw",
    ),
    _refused("galore_adamw_layerwise", "GaLore AdamW", _LAYERWISE, "galore_adamw"),
    _refused("galore_adamw_8bit_layerwise", "GaLore AdamW", _LAYERWISE, "galore_adamw"),
    _refused("galore_adafactor_layerwise", "GaLore Adafactor", _LAYERWISE, "galore_adafactor"),
    _refused("apollo_adamw_layerwise", "APOLLO AdamW", _LAYERWISE, "apollo_adamw"),
    _refused("lomo", "LOMO", "it steps within the backward pass, where no micro-batches can be added up", "adafactor"),
    _refused("adalomo", "AdaLomo", _LAYERWISE, "adafactor"),
    _refused(
        "grokadamw",
        "GrokAdamW",
        "grokadamw 0.1.2 leaves its state out of checkpoints: a resumed run would be another one",
        "adamw_torch",
    ),
    _refused(
        "adamw_anyprecision",
        "AdamW",
        "it is in torchdistx alone, which is no longer kept up and in no package registry",
        "adamw_torch",
    ),
    # pytorch-optimizer 4.1 has SophiaH; SophiaG is in no package that is kept up.
    Optimizer(
        "sophia",
        None,
        "Sophia",
        8.0,
        takes_betas=True,
        takes_epsilon=True,
        refused="SophiaH (pytorch-optimizer) differentiates the gradients once more, and torch's attention kernels have"
        " no such derivative",
        instead="adamw_torch",
    ),
    _refused("adamw_torch_xla", "AdamW", f"it needs torch-xla and a TPU; {_OTHER_DEVICE}", "adamw_torch"),
    _refused("adamw_torch_npu_fused", "AdamW", f"it needs torch-npu and an Ascend NPU; {_OTHER_DEVICE}", _FUSED),
)
OPTIMIZERS = {row.name: row for row in _ROWS}
# What other tools, or people, call them.
OTHER_NAMES = {
    "adamw_hf": "adamw_torch",
    "adamw": "adamw_torch",
    "adam": "adamw_torch",
    "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw": "paged_adamw_32bit",
    "lion": "lion_32bit",
    "paged_lion": "paged_lion_32bit",
}


def optimizer_packages() -> tuple[str, ...]:
    """Every package that some optimizer needs, as pip names it."""
    return tuple(sorted({package for row in OPTIMIZERS.values() for package in row.packages}))


def offered() -> tuple[str, ...]:
    """The names that are run."""
    return tuple(name for name, row in OPTIMIZERS.items() if not row.refused)
