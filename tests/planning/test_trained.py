"""Layers that are trained in full beside an adapter: their names in the calls, their weights in the forecasts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fastft.planning.memory import MemorySettings, forecast_memory
from fastft.planning.trained import FullLayers
from fastft.planning.work import work_per_token
from fastft.probe.architecture import KNOWN, PROJECTIONS

UNTIED, TIED = KNOWN["llama-3.1-8b"], KNOWN["smollm2-135m"]
LORA = MemorySettings(False, False, 16, PROJECTIONS, "adamw_torch", "keep", "fused", False, False)


@pytest.mark.parametrize(
    ("layers", "tied", "names"),
    [
        (FullLayers(), True, ()),
        (FullLayers(adds_tokens=True), True, ("embed_tokens",)),
        (FullLayers(adds_tokens=True), False, ("embed_tokens", "lm_head")),
        (FullLayers(("lm_head",), adds_tokens=True), False, ("lm_head", "embed_tokens")),
    ],
)
def test_added_tokens_train_the_layers_that_have_a_row_for_each(
    layers: FullLayers, tied: bool, names: tuple[str, ...]
) -> None:
    assert layers.names(tied=tied) == names


def test_each_copy_takes_weights_gradients_and_moments() -> None:
    grown = replace(LORA, full_layers=FullLayers(adds_tokens=True))
    for model, copies in ((UNTIED, 2), (TIED, 1)):
        plain, more = (forecast_memory(model, settings, 512, 0) for settings in (LORA, grown))

        extra = copies * model.vocabulary * model.hidden
        assert more.adapter_bytes - plain.adapter_bytes == 4 * extra
        assert more.gradients_bytes - plain.gradients_bytes == 4 * extra
        assert more.optimizer_bytes - plain.optimizer_bytes == 8 * extra


def test_a_trained_output_layer_costs_the_product_of_its_gradient() -> None:
    plain, more = (
        work_per_token(
            UNTIED, adapter_weights=0, full_finetuning=False, recomputes=False, span=1, trains_head=trained
        ).total
        for trained in (False, True)
    )

    assert more - plain == 2 * UNTIED.vocabulary * UNTIED.hidden
