"""What a run stands on: enough to detect whether another run, or a resumed one, is the same."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from fastft import __version__
from fastft.data.prepare import Prepared
from fastft.planning.facts import Facts
from fastft.planning.plan import Plan
from fastft.recipe.loader import LoadedRecipe

# What a resumed run must have in common with the attempts before it.
COMPARED = ("data", "base_model", "chat_template", "packages", "engine", "seed")


@dataclass(frozen=True)
class BaseModelIdentity:
    """The base model: the id of the recipe, and hashes of what was loaded.

    `fingerprint` is that of the 16-bit weights; None for a base in 4 bits, which has another than its original.
    """

    id: str
    revision: str | None
    tokenizer_sha256: str
    weight_bytes: int | None
    fingerprint: str | None


@dataclass(frozen=True)
class DataIdentity:
    """The data: what the recipe names, and SHA-256 of the rows."""

    train: str | None
    train_sha256: str
    eval: str | None
    eval_sha256: str | None
    format: str


@dataclass(frozen=True)
class TemplateIdentity:
    """The chat template by its name in the recipe and its text's SHA-256."""

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


def make_manifest(loaded: LoadedRecipe, facts: Facts, prepared: Prepared, plan: Plan, base: Path) -> Manifest:
    """The manifest of a run whose base model lies in `base`."""
    from fastft.files.tensors import weights_fingerprint  # numpy, which light commands do without

    template, base_model, data = prepared.template, facts.base_model, loaded.recipe.data
    return Manifest(
        fastft=__version__,
        python=sys.version.split()[0],
        packages=dict(facts.installed),
        device=plan.device,
        engine=plan.engine,
        base_model=BaseModelIdentity(
            id=base_model.id,
            revision=loaded.recipe.model.revision,
            tokenizer_sha256=prepared.renderer.tokenizer.sha256,
            weight_bytes=base_model.weight_bytes,
            fingerprint=None if "quantization_config" in base_model.config else weights_fingerprint(base),
        ),
        data=DataIdentity(data.train, prepared.train_sha256, data.eval, prepared.eval_sha256, prepared.format),
        chat_template=None if template is None else TemplateIdentity(template.name, template.sha256),
        seed=loaded.recipe.train.seed,
    )


def changes(before: Manifest, now: Manifest) -> list[str]:
    """What a resumed run must not change and did: `data.train_sha256`, `packages.torch (2.13.0, now 2.14.0)`."""
    old, new = dataclasses.asdict(before), dataclasses.asdict(now)
    return [line for key in COMPARED for line in _differences(key, old[key], new[key])]


def _differences(name: str, before: Any, now: Any) -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*before, *now]):
            yield from _differences(f"{name}.{key}", before.get(key), now.get(key))
    elif before != now:
        yield name if name.endswith("sha256") else f"{name} ({before}, now {now})"
