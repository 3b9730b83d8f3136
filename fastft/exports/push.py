"""Upload artefacts that passed to the Hub, for `--push` alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fastft.console import Say, redact
from fastft.errors import MachineError, Problem, Where
from fastft.exports.job import Artefact
from fastft.probe.hashes import kept_sha256

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# The Hub keeps larger files apart from the repository, under their SHA-256.
LARGE_BYTES = 10_000_000


def push(artefact: Artefact, repo_id: str, say: Say = print) -> str:
    """Upload `artefact` to the model repository `repo_id`, made private when it is new; returns its address.

    A folder goes to the top of the repository; so does a GGUF file, its Modelfile, and its card as README.md. Each
    large file is a commit of its own, and one that the repository has with the same SHA-256 is not sent again: so the
    same command goes on after a stop. The small files come last, so that nothing names weights that are not there.

    Raises:
        MachineError: not logged in, not allowed, or unreachable. The artefact stays where it is.
    """
    from huggingface_hub import HfApi

    hub = HfApi()
    files = _files(artefact.path)
    large = {name: path for name, path in files.items() if path.stat().st_size > LARGE_BYTES}
    small = {name: path for name, path in files.items() if name not in large}
    with _explained(artefact, repo_id):
        repository = hub.create_repo(repo_id, private=True, exist_ok=True)
        there = _hashes(hub, repository.repo_id) if large else {}
        for number, (name, path) in enumerate(large.items(), start=1):
            place = f"{name} ({path.stat().st_size:,} bytes), large file {number} of {len(large)}"
            if there.get(name) == kept_sha256(path):
                say(f"{place}: is there already")
                continue
            say(f"{place}: is sent")
            _commit(hub, repository.repo_id, {name: path}, f"{name}, written by fastft")
        if small:
            _commit(hub, repository.repo_id, small, f"{artefact.kind}, written by fastft")
    return str(repository)


def _commit(hub: HfApi, repo_id: str, files: Mapping[str, Path], message: str) -> None:
    from huggingface_hub import CommitOperationAdd

    operations = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
    hub.create_commit(repo_id, operations, commit_message=message)


def _hashes(hub: HfApi, repo_id: str) -> dict[str, str]:
    """SHA-256 of the large files that a repository has, by name."""
    siblings = hub.model_info(repo_id, files_metadata=True).siblings or []
    return {one.rfilename: one.lfs.sha256 for one in siblings if one.lfs is not None}


@contextlib.contextmanager
def _explained(artefact: Artefact, repo_id: str) -> Iterator[None]:
    import httpx
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except (HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, httpx.HTTPError) as error:
        wrong = f"cannot be uploaded: {redact(' '.join(str(error).split()))[:300]}"
        instead = f"the file is whole at {artefact.path}; see `hf auth login`, then run the same command: it goes on"
        raise MachineError(Problem(Where("--push"), "", wrong, instead, repo_id)) from None


def _files(path: Path) -> dict[str, Path]:
    """Name in the repository to file."""
    if path.is_dir():
        return {str(file.relative_to(path)): file for file in sorted(path.rglob("*")) if file.is_file()}
    beside = {f"{path.stem}.Modelfile": path.with_suffix(".Modelfile"), "README.md": path.with_suffix(".md")}
    return {path.name: path, **{name: file for name, file in beside.items() if file.is_file()}}
