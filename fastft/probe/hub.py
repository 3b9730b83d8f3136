"""Download a Hub model; without a network, fail within seconds."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

from fastft.console import Say
from fastft.errors import Where
from fastft.probe.base_model import HUB_FILES, BaseModel, unusable

TIMEOUT_SECONDS = 8.0


def fetch(model: BaseModel, revision: str | None, where: Where, say: Say) -> BaseModel:
    """Download the safetensors of a Hub model that is not on this machine. Returns the base model with its folder.

    Raises:
        MachineError: offline, unknown, gated, unreachable or without safetensors; after one short request, no retries.
    """
    if model.source != "hub" or model.is_here:
        return model
    import httpx
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    say(f"downloading {model.id}")
    refuse = partial(unusable, model.id, where)
    elsewhere = "name a local folder, or download the model on a machine with a network and copy its folder"
    if constants.HF_HUB_OFFLINE:
        raise refuse("is not on this machine, and HF_HUB_OFFLINE forbids asking the Hub", elsewhere)
    try:
        info = HfApi().model_info(model.id, revision=revision, timeout=TIMEOUT_SECONDS)
    except GatedRepoError:
        instead = f"accept its licence on https://huggingface.co/{model.id}, then `hf auth login`"
        raise refuse("is gated", instead) from None
    except RevisionNotFoundError:
        raise refuse(f"has no revision {revision}", "write one of its branches, tags or commits") from None
    except RepositoryNotFoundError:
        instead = "check the spelling; a private model needs `hf auth login`"
        raise refuse("the Hub has no such model", instead) from None
    except (OfflineModeIsEnabled, HfHubHTTPError, httpx.HTTPError, OSError) as error:
        wrong = f"is not on this machine, and the Hub cannot be reached ({type(error).__name__})"
        raise refuse(wrong, elsewhere) from None
    files = [sibling.rfilename for sibling in info.siblings or []]
    if not any(name.endswith(".safetensors") for name in files):
        raise refuse("has no safetensors weights; pickles can run code and are not loaded", "use a safetensors model")
    folder = snapshot_download(model.id, revision=info.sha, allow_patterns=list(HUB_FILES))
    return dataclasses.replace(model, folder=Path(folder))
