"""The pinned lists, the tested versions and the ranges of pyproject.toml agree."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fastft.probe.software import CEILINGS, FLOORS, TESTED, release

ROOT = Path(__file__).parents[1]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def pins(name: str) -> dict[str, str]:
    """Package -> version of a requirements file."""
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    return {
        canonicalize_name(line.split("==")[0]): line.split("==")[1]
        for line in lines
        if "==" in line[:60] and line[0] != "#"
    }


def test_the_pins_are_the_tested_versions() -> None:
    pinned = pins("cpu.txt")

    # torch is installed first, with its own dependencies.
    assert {name: pinned[canonicalize_name(name)] for name in TESTED if name != "torch"} == {
        name: version for name, version in TESTED.items() if name != "torch"
    }


@pytest.mark.parametrize("name", ["requirements/cpu.txt", "requirements/gpu.txt", "Makefile"])
def test_every_file_that_installs_torch_installs_the_tested_one(name: str) -> None:
    assert set(re.findall(r"torch==([\d.]+)", (ROOT / name).read_text())) == {TESTED["torch"]}


@pytest.mark.parametrize("text", EXTRAS["train"] + EXTRAS["hygiene"] + EXTRAS["quickstart"])
def test_the_ranges_allow_what_was_tested(text: str) -> None:
    requirement = Requirement(text)
    gpu_only = {"xformers": pins("gpu.txt")["xformers"], "torch": TESTED["torch"]}

    assert ({**pins("cpu.txt"), **gpu_only})[canonicalize_name(requirement.name)] in requirement.specifier


@pytest.mark.parametrize("text", EXTRAS["train"])
def test_doctor_refuses_what_the_ranges_refuse(text: str) -> None:
    requirement = Requirement(text)
    if requirement.name in TESTED:
        refused = ".".join(map(str, CEILINGS.get(requirement.name, (99999,))))

        assert (refused not in requirement.specifier) == (requirement.name in CEILINGS)


def test_the_tested_versions_are_below_every_ceiling() -> None:
    assert [name for name, ceiling in CEILINGS.items() if release(TESTED[name]) >= ceiling] == []


def test_the_tested_versions_have_no_published_vulnerabilities() -> None:
    assert [name for name, floor in FLOORS.items() if release(TESTED[name]) < floor] == []


@pytest.mark.parametrize("path", sorted((ROOT / "requirements").iterdir()), ids=lambda path: path.name)
def test_a_pin_list_names_packages_and_versions_only(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]

    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+|-r [\w.]+", line)] == []
