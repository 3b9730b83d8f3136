"""Download a Hub model, or only its small files; without a network, fail within seconds."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fastft.console import Say
from fastft.errors import Where
from fastft.probe.base_model import (
    HUB_FILES,
    PICKLES,
    SMALL_HUB_FILES,
    USE_PICKLES,
    BaseModel,
    downloaded,
    unusable,
)

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

TIMEOUT_SECONDS = 8.0
PROXIES = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY")
ELSEWHERE = "name a local folder, or download the model on a machine with a network and copy its folder"
# Errors of this machine's disk, not of the Hub.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def fetch(model: BaseModel, revision: str | None, where: Where, say: Say) -> BaseModel:
    """Download the weights of a Hub model that is not on this machine. Returns the base model with its folder.

    Raises:
        MachineError: offline, unknown, gated, unreachable or without safetensors; after one short request, no retries.
    """
    if model.source != "hub" or model.is_here or model.original_is_here:
        return model
    say(f"downloading {model.id}")
    info = _ask_hub(model, revision, where)
    files = [sibling.rfilename for sibling in info.siblings or []]
    if any(name.endswith(".safetensors") for name in files):
        return _download(model, info, HUB_FILES, where)
    if not any(name.startswith("pytorch_model") for name in files):
        raise unusable(model.id, where, "has no safetensors weights", "use a safetensors model")
    if not model.pickled:
        raise unusable(model.id, where, PICKLES, USE_PICKLES)
    return _download(model, info, (*SMALL_HUB_FILES, "pytorch_model*.bin"), where)


def fetch_small_files(model: BaseModel, revision: str | None, where: Where) -> BaseModel:
    """Download config, tokenizer and chat template of a Hub model, and no weights. Returns the base model with them.

    Raises:
        MachineError: as `fetch`.
    """
    folder = model.original or model.folder
    if model.source != "hub" or (folder is not None and any(folder.glob("tokenizer.[jm]*"))):
        return model
    return _download(model, _ask_hub(model, revision, where), SMALL_HUB_FILES, where)


def _ask_hub(model: BaseModel, revision: str | None, where: Where) -> ModelInfo:
    """What the Hub says of a model.

    Raises:
        MachineError: offline, unknown, gated or unreachable.
    """
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        raise unusable(model.id, where, "is not on this machine, and HF_HUB_OFFLINE forbids asking the Hub", ELSEWHERE)
    with _refusals(model.id, revision, where):
        return HfApi().model_info(model.id, revision=revision, timeout=TIMEOUT_SECONDS)


def _download(model: BaseModel, info: ModelInfo, files: Sequence[str], where: Where) -> BaseModel:
    """The base model with the folder of its `files`.

    Raises:
        MachineError: gated, unreachable, or with a config.json that is damaged. Anybody may ask the Hub about a gated
            model, and not download it.
    """
    from huggingface_hub import snapshot_download

    with _refusals(model.id, info.sha, where):
        folder = Path(snapshot_download(model.id, revision=info.sha, allow_patterns=list(files)))
    return downloaded(model.id, folder, where, pickled=model.pickled)


@contextmanager
def _refusals(model_id: str, revision: str | None, where: Where) -> Iterator[None]:
    """Raise what the Hub refuses as a MachineError that says what to do."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    refuse = partial(unusable, model_id, where)
    try:
        yield
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
        if isinstance(error, OSError) and error.errno in _DISK:
            raise
        wrong = f"is not on this machine, and the Hub cannot be reached ({type(error).__name__})"
        raise refuse(wrong, ELSEWHERE) from None
