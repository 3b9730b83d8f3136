"""Where metrics can go besides metrics.jsonl: one row a name of `train.report_to`, with the packages that it needs."""

from __future__ import annotations

from collections.abc import Collection

# Name in transformers -> what must be installed, as transformers looks for it (integrations/integration_utils.py); of
# names that stand together one is enough.
REPORTERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "azure_ml": (("azureml-core",), ("mlflow",)),
    "clearml": (("clearml",),),
    "codecarbon": (("codecarbon",),),
    "comet_ml": (("comet-ml",),),
    "dagshub": (("dagshub",), ("mlflow",)),
    "dvclive": (("dvclive",),),
    "flyte": (("flytekit",), ("flytekitplugins-deck-standard",), ("pandas",)),
    "mlflow": (("mlflow",),),
    "neptune": (("neptune", "neptune-client"),),
    "swanlab": (("swanlab",),),
    "tensorboard": (("tensorboard", "tensorboardX"),),
    "trackio": (("trackio",),),
    "wandb": (("wandb",),),
}
REPORTER_PACKAGES = tuple(sorted({name for needs in REPORTERS.values() for group in needs for name in group}))


# Names of which fastft has an extra: pip install "fastft[tensorboard]".
EXTRAS = ("clearml", "mlflow", "tensorboard", "trackio", "wandb")


def missing_for(reporter: str, installed: Collection[str]) -> tuple[str, ...]:
    """The packages to install before metrics can go to `reporter`."""
    return tuple(group[0] for group in REPORTERS[reporter] if not set(group) & set(installed))
