"""Upload artefacts that passed to the Hub, for `--push` alone."""

from __future__ import annotations

from pathlib import Path

from fastft.errors import MachineError, Problem, Where
from fastft.exports.job import Artefact


def push(artefact: Artefact, repo_id: str) -> str:
    """Upload `artefact` to the model repository `repo_id`, made private when it is new; returns its address.

    A folder goes to the top of the repository; so does a GGUF file, its Modelfile, and its card as README.md.

    Raises:
        MachineError: not logged in, not allowed, or unreachable. The artefact stays where it is.
    """
    import httpx
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    hub = HfApi()
    files = [CommitOperationAdd(name, str(path)) for name, path in _files(artefact.path).items()]
    try:
        repository = hub.create_repo(repo_id, private=True, exist_ok=True)
        hub.create_commit(repository.repo_id, files, commit_message=f"{artefact.kind}, written by fastft")
    except (HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, httpx.HTTPError) as error:
        wrong = f"cannot be uploaded: {' '.join(str(error).split())[:300]}"
        instead = f"the file is whole at {artefact.path}; see `hf auth login`"
        raise MachineError(Problem(Where("--push"), "", wrong, instead, repo_id)) from None
    return str(repository)


def _files(path: Path) -> dict[str, Path]:
    """Name in the repository to file."""
    if path.is_dir():
        return {str(file.relative_to(path)): file for file in sorted(path.rglob("*")) if file.is_file()}
    beside = {f"{path.stem}.Modelfile": path.with_suffix(".Modelfile"), "README.md": path.with_suffix(".md")}
    return {path.name: path, **{name: file for name, file in beside.items() if file.is_file()}}
