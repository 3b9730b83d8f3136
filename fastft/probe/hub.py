"""Download a Hub model, or only its small files; without a network, fail within seconds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fastft.console import Say
from fastft.errors import Where
from fastft.probe.base_model import HUB_FILES, SMALL_HUB_FILES, BaseModel, unusable

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

TIMEOUT_SECONDS = 8.0
_ELSEWHERE = "name a local folder, or download the model on a machine with a network and copy its folder"


def fetch(model: BaseModel, revision: str | None, where: Where, say: Say) -> BaseModel:
    """Download the safetensors of a Hub model that is not on this machine. Returns the base model with its folder.

    Raises:
        MachineError: offline, unknown, gated, unreachable or without safetensors; after one short request, no retries.
    """
    if model.source != "hub" or model.is_here:
        return model
    say(f"downloading {model.id}")
    info = _info(model, revision, where)
    files = [sibling.rfilename for sibling in info.siblings or []]
    if not any(name.endswith(".safetensors") for name in files):
        wrong = "has no safetensors weights; pickles can run code and are not loaded"
        raise unusable(model.id, where, wrong, "use a safetensors model")
    return _download(model, info, HUB_FILES, where)


def fetch_small_files(model: BaseModel, revision: str | None, where: Where) -> BaseModel:
    """Download config, tokenizer and chat template of a Hub model, and no weights. Returns the base model with them.

    Raises:
        MachineError: as `fetch`.
    """
    if model.source != "hub" or (model.folder is not None and (model.folder / "tokenizer.json").is_file()):
        return model
    return _download(model, _info(model, revision, where), SMALL_HUB_FILES, where)


def _info(model: BaseModel, revision: str | None, where: Where) -> ModelInfo:
    """What the Hub says of a model.

    Raises:
        MachineError: offline, unknown, gated or unreachable.
    """
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        raise unusable(model.id, where, "is not on this machine, and HF_HUB_OFFLINE forbids asking the Hub", _ELSEWHERE)
    with _refusals(model, revision, where):
        return HfApi().model_info(model.id, revision=revision, timeout=TIMEOUT_SECONDS)


def _download(model: BaseModel, info: ModelInfo, files: Sequence[str], where: Where) -> BaseModel:
    """The base model with the folder of its `files`.

    Raises:
        MachineError: gated or unreachable. Anybody may ask the Hub about a gated model, and not download it.
    """
    from huggingface_hub import snapshot_download

    with _refusals(model, info.sha, where):
        folder = snapshot_download(model.id, revision=info.sha, allow_patterns=list(files))
    return dataclasses.replace(model, folder=Path(folder))


@contextmanager
def _refusals(model: BaseModel, revision: str | None, where: Where) -> Iterator[None]:
    """Raise what the Hub refuses as a MachineError with the way out."""
    import httpx
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    refuse = partial(unusable, model.id, where)
    try:
        yield
    except GatedRepoError:
        instead = f"accept its licence on https://huggingface.co/{model.id}, then `hf auth login`"
        raise refuse("is gated", instead) from None
    except RevisionNotFoundError:
        raise refuse(f"has no revision {revision}", "write one of its branches, tags or commits") from None
    except RepositoryNotFoundError:
        instead = "check the spelling; a private model needs `hf auth login`"
        raise refuse("the Hub has no such model", instead) from None
    except (OfflineModeIsEnabled, LocalEntryNotFoundError, HfHubHTTPError, httpx.HTTPError, ConnectionError) as error:
        wrong = f"is not on this machine, and the Hub cannot be reached ({type(error).__name__})"
        raise refuse(wrong, _ELSEWHERE) from None
