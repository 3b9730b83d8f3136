from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fastft.probe.installation import Diagnosis, examine
from fastft.probe.software import TESTED

Install = Callable[[str, str], None]


def findings(folder: Path) -> dict[str, Diagnosis]:
    return {finding.name: finding for finding in examine(folder)}


def test_every_training_package_is_reported(tmp_path: Path) -> None:
    assert set(TESTED) <= set(findings(tmp_path))


def test_a_version_with_published_vulnerabilities_is_broken_and_names_the_fix(tmp_path: Path, install: Install) -> None:
    install("unsloth", "2026.1.1")

    found = findings(tmp_path)["unsloth"]

    assert (found.state, found.fix) == ("broken", "pip install 'unsloth>=2026.8.20'")


def test_another_version_than_the_tested_one_is_a_note(tmp_path: Path, install: Install) -> None:
    install("peft", "0.99.0")

    found = findings(tmp_path)["peft"]

    assert (found.state, found.detail) == ("note", f"0.99.0; {TESTED['peft']} was tested")


def test_a_gpu_beside_a_cpu_build_of_torch_is_broken(
    tmp_path: Path, install: Install, nvidia_smi: Callable[[str], None]
) -> None:
    install("torch", "2.13.0+cpu")
    nvidia_smi("Tesla T4, 15360, 7.5")

    found = findings(tmp_path)["device"]

    assert found.state == "broken"
    assert "requirements/gpu.txt" in found.fix


@pytest.mark.parametrize(("cuda", "state"), [("13.0", "ok"), ("12.5", "broken")])
def test_bitsandbytes_needs_a_library_for_the_cuda_of_torch(
    tmp_path: Path, install: Install, nvidia_smi: Callable[[str], None], cuda: str, state: str
) -> None:
    nvidia_smi("Tesla T4, 15360, 7.5")
    for name, file, text in (
        ("torch", "version.py", f"from typing import Optional\ncuda: Optional[str] = '{cuda}'\nhip = None\n"),
        ("bitsandbytes", "libbitsandbytes_cuda130.so", ""),
    ):
        install(name, TESTED[name])
        (tmp_path / "site" / name).mkdir()
        (tmp_path / "site" / name / file).write_text(text)

    assert findings(tmp_path)["4-bit weights"].state == state


def test_a_cache_that_cannot_be_written_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))

    found = findings(tmp_path)["cache"]

    assert (found.state, found.fix) == ("broken", "set XDG_CACHE_HOME")


def test_what_is_broken_names_its_fix(tmp_path: Path) -> None:
    assert [finding for finding in examine(tmp_path) if finding.state == "broken" and not finding.fix] == []


def test_a_version_that_is_too_new_for_unsloth_is_broken(tmp_path: Path, install: Install) -> None:
    install("torch", "2.16.0+cu130")

    found = findings(tmp_path)["torch"]

    assert (found.state, found.fix) == ("broken", f"pip install torch=={TESTED['torch']}")
