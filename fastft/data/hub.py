"""Rows of a Hub dataset, through `datasets`; the only module of the data layer that uses the network."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from fastft.data.json_rows import Row
from fastft.data.values import without_null_keys
from fastft.errors import DataError, MachineError, Problem, Where

# Without an answer within this time, only the cache is used: the libraries' own retries take a minute and a half.
REACHABLE_WITHIN_SECONDS = 5.0


def read_hub_rows(source: str, field: str = "data.train") -> Iterator[Row]:
    """The rows of `org/name`, `org/name:split` or `org/name/configuration:split` (split "train" when not given).

    Reads only the cache when `HF_HUB_OFFLINE` is set or the Hub does not answer.

    Raises:
        DataError: there is no such dataset, configuration or split.
        MachineError: the Hub cannot be reached and the dataset is not cached, or `datasets` is not installed.
    """
    for number, row in enumerate(_loaded(source, field), start=1):
        yield Where(source, number), {name: without_null_keys(value) for name, value in row.items()}


def hub_sha256(source: str, field: str = "data.train") -> str:
    """A SHA-256 that identifies this revision of a Hub dataset, as 64 hexadecimal digits.

    Raises:
        DataError, MachineError: as `read_hub_rows`.
    """
    # There is no public name for it; `datasets` makes it from the dataset's id, configuration, commit and split.
    fingerprint: str = _loaded(source, field)._fingerprint
    return hashlib.sha256(f"{source}\n{fingerprint}".encode()).hexdigest()


def count_cached_rows(source: str) -> int | None:
    """How many rows a Hub dataset has in the cache; None where it is not there. Never uses the network."""
    try:
        import datasets
    except ImportError:
        return None
    before, datasets.config.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE, True
    dataset_id, _, split = source.partition(":")
    organisation, name, *configuration = dataset_id.split("/")
    try:
        return len(datasets.load_dataset(f"{organisation}/{name}", *configuration, split=split or "train"))
    except (datasets.exceptions.DatasetNotFoundError, OSError, ValueError):
        return None
    finally:
        datasets.config.HF_HUB_OFFLINE = before


@lru_cache(maxsize=16)
def _loaded(source: str, field: str) -> Any:
    """The mapped dataset. Cached, because its rows are read several times and a branch can move in between."""
    dataset_id, _, split = source.partition(":")
    organisation, name, *configuration = dataset_id.split("/")
    where = Where(source)
    try:
        import datasets
    except ImportError as error:
        wrong = "a Hub dataset needs the package datasets"
        raise MachineError(Problem(where, field, wrong, 'pip install "fastft[train]"')) from error
    reachable = _is_reachable(f"{organisation}/{name}", where, field)
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or not reachable
    try:
        return datasets.load_dataset(f"{organisation}/{name}", *configuration, split=split or "train")
    except (datasets.exceptions.DatasetNotFoundError, ConnectionError, OSError) as error:
        if reachable:
            raise DataError(Problem(where, field, f"cannot be loaded: {_line(error)}", "check the id")) from error
        wrong = "the Hub cannot be reached, and this dataset is not in its cache"
        instead = "use a local file, or download it once with a network"
        raise MachineError(Problem(where, field, wrong, instead)) from error
    except ValueError as error:
        wrong = f"cannot be loaded: {_line(error)}"
        raise DataError(Problem(where, field, wrong, "write org/name/configuration:split")) from error
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _is_reachable(dataset_id: str, where: Where, field: str) -> bool:
    """Whether the Hub answers for this dataset.

    Raises:
        DataError: the Hub answers that the dataset does not exist or that this user has no access.
    """
    import huggingface_hub
    from huggingface_hub import constants, errors

    if constants.HF_HUB_OFFLINE or os.environ.get("HF_DATASETS_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return False
    try:
        huggingface_hub.HfApi().dataset_info(dataset_id, timeout=REACHABLE_WITHIN_SECONDS)
    except (errors.RepositoryNotFoundError, errors.GatedRepoError) as error:
        wrong = "no such Hub dataset, or it is private or gated"
        raise DataError(Problem(where, field, wrong, "check the id, and log in with `hf auth login`")) from error
    except Exception:
        # Any error of the network library (no name, no route, time-out, proxy): the caller tries the cache next, and
        # reports what is missing there.
        return False
    return True


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
