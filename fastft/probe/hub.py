"""Download a Hub model; without a network, fail within seconds."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from fastft.console import Say
from fastft.errors import MachineError, Problem, Where
from fastft.probe.base_model import HUB_FILES, BaseModel, check_config

TIMEOUT_SECONDS = 8.0


def _download(model_id: str, revision: str | None, where: Where) -> Path:
    """Download the safetensors of a Hub model, never pickles. Returns the local snapshot folder.

    Raises:
        MachineError: offline, unknown, gated, unreachable or without safetensors; after one short request, no retries.
    """
    import httpx
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    def refuse(wrong: str, instead: str) -> MachineError:
        return MachineError(Problem(where, "model.id", wrong, instead, json.dumps(model_id)))

    elsewhere = "name a local folder, or download the model on a machine with a network and copy its folder"
    if constants.HF_HUB_OFFLINE:
        raise refuse("is not on this machine, and HF_HUB_OFFLINE forbids asking the Hub", elsewhere)
    try:
        info = HfApi().model_info(model_id, revision=revision, timeout=TIMEOUT_SECONDS)
    except GatedRepoError:
        raise refuse(
            "is gated", f"accept its licence on https://huggingface.co/{model_id}, then `hf auth login`"
        ) from None
    except RevisionNotFoundError:
        raise refuse(f"has no revision {revision}", "write one of its branches, tags or commits") from None
    except RepositoryNotFoundError:
        instead = "check the spelling; a private model needs `hf auth login`"
        raise refuse("the Hub has no such model", instead) from None
    except (OfflineModeIsEnabled, HfHubHTTPError, httpx.HTTPError, OSError) as error:
        raise refuse(
            f"is not on this machine, and the Hub cannot be reached ({type(error).__name__})", elsewhere
        ) from None
    files = [sibling.rfilename for sibling in info.siblings or []]
    if not any(name.endswith(".safetensors") for name in files):
        raise refuse("has no safetensors weights; pickles can run code and are not loaded", "use a safetensors model")
    return Path(snapshot_download(model_id, revision=info.sha, allow_patterns=list(HUB_FILES)))


def fetch(model: BaseModel, revision: str | None, where: Where, say: Say) -> BaseModel:
    """Download a Hub model that is not on this machine. Returns the base model with its folder.

    Raises:
        MachineError: offline, unknown, gated, unreachable or without safetensors.
    """
    if model.source != "hub" or model.is_here:
        return model
    say(f"downloading {model.id}")
    folder = _download(model.id, revision, where)
    check_config(folder, where, model.id)
    return dataclasses.replace(model, folder=folder)
