"""Download a Hub model; without a network, fail within seconds."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from fastft.console import Say
from fastft.errors import MachineError, Where
from fastft.probe.base_model import HUB_FILES, BaseModel, check_config, unusable

TIMEOUT_SECONDS = 8.0
PROXIES = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY")
ELSEWHERE = "name a local folder, or download the model on a machine with a network and copy its folder"


def fetch(model: BaseModel, revision: str | None, where: Where, say: Say) -> BaseModel:
    """Download the safetensors of a Hub model that is not on this machine. Returns the base model with its folder.

    Raises:
        MachineError: offline, unknown, gated, unreachable or without safetensors; after one short request, no retries.
    """
    if model.source != "hub" or model.is_here:
        return model
    from huggingface_hub import constants, snapshot_download

    say(f"downloading {model.id}")
    refuse = partial(unusable, model.id, where)
    if constants.HF_HUB_OFFLINE:
        raise refuse("is not on this machine, and HF_HUB_OFFLINE forbids asking the Hub", ELSEWHERE)
    info = _ask_hub(model.id, revision, refuse)
    files = [sibling.rfilename for sibling in info.siblings or []]
    if not any(name.endswith(".safetensors") for name in files):
        raise refuse("has no safetensors weights; pickles can run code and are not loaded", "use a safetensors model")
    folder = Path(snapshot_download(model.id, revision=info.sha, allow_patterns=list(HUB_FILES)))
    check_config(folder, where, model.id)
    return dataclasses.replace(model, folder=folder)


def _ask_hub(model_id: str, revision: str | None, refuse: Callable[[str, str], MachineError]) -> Any:
    """What the Hub says of a model (huggingface_hub's ModelInfo); raises what `refuse` gives."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return HfApi().model_info(model_id, revision=revision, timeout=TIMEOUT_SECONDS)
    except GatedRepoError:
        instead = f"accept its licence on https://huggingface.co/{model_id}, then `hf auth login`"
        raise refuse("is gated", instead) from None
    except RevisionNotFoundError:
        raise refuse(f"has no revision {revision}", "write one of its branches, tags or commits") from None
    except RepositoryNotFoundError:
        instead = "check the spelling; a private model needs `hf auth login`"
        raise refuse("the Hub has no such model", instead) from None
    except ImportError:  # httpx needs socksio for a SOCKS proxy
        names = [name for name in PROXIES if os.environ.get(name) or os.environ.get(name.lower())]
        wrong = f"is not on this machine, and the Hub cannot be reached through the proxy of {' and '.join(names)}"
        raise refuse(wrong, 'run: pip install "httpx[socks]", or unset the variable') from None
    except Exception as error:
        # The client's own errors: huggingface_hub 1.x brings httpx, 2.x httpx2, and neither is a dependency of ours.
        client = type(error).__module__.split(".")[0] in ("httpx", "httpx2", "httpcore", "h11")
        if not client and not isinstance(error, (OfflineModeIsEnabled, HfHubHTTPError, OSError)):
            raise
        wrong = f"is not on this machine, and the Hub cannot be reached ({type(error).__name__})"
        raise refuse(wrong, ELSEWHERE) from None
