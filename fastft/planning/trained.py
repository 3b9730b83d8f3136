"""How many weights a run trains: of its adapter, of layers in full, or all."""

from __future__ import annotations

from dataclasses import dataclass

from fastft.probe.architecture import Architecture
from fastft.recipe.model import Recipe

# PEFT's names of the layers that have a row for each token.
EMBEDDING, OUTPUT = "embed_tokens", "lm_head"


@dataclass(frozen=True)
class FullLayers:
    """Layers that are trained in full beside an adapter, as copies.

    `named`: by the recipe. `adds_tokens`: those that have a row for each token are trained too; an output layer that is
    the embedding itself stays so.
    """

    named: tuple[str, ...] = ()
    adds_tokens: bool = False

    def names(self, *, tied: bool) -> tuple[str, ...]:
        """Their names in PEFT's `modules_to_save`; `tied`: whether the output layer is the embedding itself."""
        grown = () if not self.adds_tokens else (EMBEDDING,) if tied else (EMBEDDING, OUTPUT)
        return tuple(dict.fromkeys([*self.named, *grown]))

    def weights(self, model: Architecture) -> int:
        """The number of their weights."""
        sizes = {name: model.layers * inputs * outputs for name, (inputs, outputs) in model.projections.items()}
        sizes |= dict.fromkeys((EMBEDDING, OUTPUT), model.embedding_weights)
        return sum(sizes.get(name, 0) for name in self.names(tied=model.ties_embeddings))

    @property
    def has_head(self) -> bool:
        """Whether the output layer is among them."""
        return OUTPUT in self.named or self.adds_tokens


NO_LAYERS = FullLayers()


def full_layers(recipe: Recipe) -> FullLayers:
    """The layers that `recipe` trains in full beside its adapter; none with full fine-tuning."""
    if recipe.model.full_finetuning:
        return NO_LAYERS
    return FullLayers(recipe.lora.modules_to_save, recipe.adds_tokens)


def adapter_weights(recipe: Recipe, architecture: Architecture) -> int:
    """The number of weights of the low-rank matrices, or with full fine-tuning all weights."""
    if recipe.model.full_finetuning:
        return architecture.weights
    return architecture.adapter_weights(recipe.lora.r, recipe.lora.target_modules)


def count_trained_weights(recipe: Recipe, architecture: Architecture) -> int:
    """The number of trained weights: of the adapter and of layers in full, or with full fine-tuning all."""
    return adapter_weights(recipe, architecture) + full_layers(recipe).weights(architecture)
