from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fastft.errors import MachineError
from fastft.probe.software import NEEDED_TO_EXPORT, installed, package_file, release, require, version


def test_a_version_is_read_from_metadata_without_importing_the_package(install: Callable[[str, str], None]) -> None:
    install("never_imported", "1.2.3+cu128")

    assert version("never_imported") == "1.2.3+cu128"
    assert version("not_installed_at_all") is None


def test_installed_lists_the_training_packages_that_are_there(install: Callable[[str, str], None]) -> None:
    install("unsloth", "2026.1.1")

    assert installed()["unsloth"] == "2026.1.1"


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("5.17.0", (5, 17, 0)),
        ("2.13.0+cu128", (2, 13, 0)),
        ("5.18.0.dev0", (5, 18, 0)),
        ("2026.10.9", (2026, 10, 9)),
        ("4.0rc1", (4,)),
        ("unknown", ()),
    ],
)
def test_a_release_is_the_leading_numbers(text: str, numbers: tuple[int, ...]) -> None:
    assert release(text) == numbers


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "carrier"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (folder / "models" / "tiny.gguf").write_bytes(b"GGUF")
    (tmp_path / "secret.gguf").write_bytes(b"secret")
    (folder / "link.gguf").symlink_to(tmp_path / "secret.gguf")
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


def test_a_file_of_a_package_is_found_without_importing_it(package: Path) -> None:
    assert package_file("carrier", "models/tiny.gguf") == package / "models" / "tiny.gguf"


@pytest.mark.parametrize(
    "name", ["models/none.gguf", "models", "../secret.gguf", "models/../../secret.gguf", "link.gguf", "/etc/passwd"]
)
def test_nothing_outside_the_package_is_a_file_of_it(package: Path, name: str) -> None:
    assert package_file("carrier", name) is None


@pytest.mark.parametrize("name", ["no_such_package", "carrier.models", "../carrier", "os", "__main__", ""])
def test_what_is_no_package_has_no_files(name: str) -> None:
    assert package_file(name, "models/tiny.gguf") is None


@pytest.mark.parametrize(
    ("name", "old"), [("torch", "2.9.1+cu128"), ("transformers", "5.9.9"), ("transformers", "4.57.0")]
)
def test_a_version_with_known_holes_is_refused_at_start(
    name: str, old: str, install: Callable[[str, str], None]
) -> None:
    for package in NEEDED_TO_EXPORT:
        install(package, old if package == name else "9999.0")

    with pytest.raises(
        MachineError, match=rf"{name} {old.replace('+', '.')} has published holes.*pip install '{name}>="
    ):
        require(NEEDED_TO_EXPORT, "fastft export")
