"""What a run was made from: enough to detect whether another run, or a resumed one, is the same."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from fastft import __version__
from fastft.console import redact, redact_value
from fastft.data.prepare import Prepared
from fastft.planning.facts import Facts
from fastft.planning.plan import Plan
from fastft.probe.hashes import sha256_of_files
from fastft.recipe.loader import LoadedRecipe


@dataclass(frozen=True)
class BaseModelIdentity:
    """The base model: the id in the recipe, and hashes of its files.

    `files_sha256`: of config.json, generation_config.json and each file of weights. `fingerprint`: of the 16-bit
    weights; None for a base in 4 bits, whose fingerprint differs from its original.
    """

    id: str
    revision: str | None
    tokenizer_sha256: str
    weight_bytes: int | None
    fingerprint: str | None
    files_sha256: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DataIdentity:
    """The data: the files in the recipe, and SHA-256 of the rows."""

    train: str | None
    train_sha256: str
    eval: str | None
    eval_sha256: str | None
    format: str


@dataclass(frozen=True)
class TemplateIdentity:
    """The chat template: its name in the recipe, and SHA-256 of its text."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """manifest.json."""

    FILE: ClassVar[str] = "manifest.json"
    SCHEMA: ClassVar[int] = 1

    fastft: str
    python: str
    packages: dict[str, str]
    device: str
    engine: str
    base_model: BaseModelIdentity
    data: DataIdentity
    chat_template: TemplateIdentity | None
    seed: int
    accepted_drift: tuple[str, ...] = ()
    """What changed between attempts and was accepted with --accept-drift."""


def make_manifest(loaded: LoadedRecipe, facts: Facts, prepared: Prepared, plan: Plan, base: Path) -> Manifest:
    """The manifest of a run whose base model is in the folder `base`; `with_hashes` adds those of its files.

    Raises:
        MachineError: a file of the weights is damaged or cut short.
    """
    from fastft.files.tensors import weights_fingerprint  # numpy, which light commands do without

    template, base_model, data = prepared.template, facts.base_model, loaded.recipe.data
    return Manifest(
        fastft=__version__,
        python=sys.version.split()[0],
        packages=dict(facts.installed),
        device=plan.device,
        engine=plan.engine,
        base_model=BaseModelIdentity(
            id=redact(base_model.id),
            revision=loaded.recipe.model.revision,
            tokenizer_sha256=prepared.renderer.tokenizer.sha256,
            weight_bytes=base_model.weight_bytes,
            fingerprint=None if "quantization_config" in base_model.config else weights_fingerprint(base),
        ),
        data=DataIdentity(
            redact_value("train", data.train),
            prepared.train_sha256,
            redact_value("eval", data.eval),
            prepared.eval_sha256,
            prepared.format,
        ),
        chat_template=None if template is None else TemplateIdentity(template.name, template.sha256),
        seed=loaded.recipe.train.seed,
    )


def with_hashes(manifest: Manifest, base: Path) -> Manifest:
    """`manifest` with the hashes of the base's files: a minute for a large base that was never hashed."""
    hashes = sha256_of_files(base, ("config.json", "generation_config.json", "*.safetensors"))
    return dataclasses.replace(manifest, base_model=dataclasses.replace(manifest.base_model, files_sha256=hashes))


@dataclass(frozen=True)
class Change:
    """One difference between the manifests of two attempts, at a dotted key such as `packages.torch`."""

    key: str
    before: object
    now: object

    def __str__(self) -> str:
        return self.key if "sha256" in self.key else f"{self.key} ({self.before}, now {self.now})"

    def is_accepted(self, keys: Sequence[str]) -> bool:
        """Whether one of `keys` is this key, or a section of the manifest that contains it."""
        return any(f"{self.key}.".startswith(f"{key}.") for key in keys)


def changes(before: Manifest, now: Manifest) -> list[Change]:
    """What differs between two attempts of a run."""
    old, new = dataclasses.asdict(before), dataclasses.asdict(now)
    return [change for key in old if key != "accepted_drift" for change in _differences(key, old[key], new[key])]


def _differences(key: str, before: Any, now: Any) -> Iterator[Change]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in dict.fromkeys([*before, *now]):
            yield from _differences(f"{key}.{name}", before.get(name), now.get(name))
    elif before != now:
        yield Change(key, before, now)
