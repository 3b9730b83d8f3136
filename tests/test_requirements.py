"""The pinned lists, the tested versions and the ranges of pyproject.toml agree."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from itertools import pairwise
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fastft.probe.software import CEILINGS, FLOORS, TESTED, release
from fastft.recipe.reporters import EXTRAS as REPORTER_EXTRAS
from fastft.recipe.reporters import REPORTERS

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


@pytest.mark.parametrize("text", EXTRAS["train"] + EXTRAS["hygiene"] + EXTRAS["optimizers"] + EXTRAS["quickstart"])
def test_the_ranges_allow_what_was_tested(text: str) -> None:
    requirement = Requirement(text)

    assert ({**pins("cpu.txt"), "torch": TESTED["torch"]})[canonicalize_name(requirement.name)] in requirement.specifier


# What a package asks for in vain, because its other versions cannot be had everywhere; see requirements/cpu.txt.
NOT_SATISFIED = {("unsloth", "certifi"), ("unsloth-zoo", "certifi")}


@pytest.mark.parametrize("name", pins("cpu.txt"))
def test_the_pins_are_what_the_pinned_packages_ask_for(name: str) -> None:
    """By the metadata of the installed packages: `--no-deps` checks nothing."""
    pinned = {**pins("cpu.txt"), **pins("gpu.txt"), "torch": TESTED["torch"]}
    try:
        package = distribution(name)
    except PackageNotFoundError:
        pytest.skip(f"{name} is not installed")
    if package.version != pinned[name]:
        pytest.skip(f"{name} is installed in version {package.version}")
    wanted = [Requirement(text) for text in package.requires or ()]
    unmet = [
        str(requirement)
        for requirement in wanted
        if (other := canonicalize_name(requirement.name)) in pinned
        and (requirement.marker is None or requirement.marker.evaluate({"extra": ""}))
        and (name, other) not in NOT_SATISFIED
        and pinned[other] not in requirement.specifier
    ]

    assert unmet == []


def test_each_pin_for_gpus_alone_has_its_reason_above_it() -> None:
    lines = (ROOT / "requirements" / "gpu.txt").read_text().splitlines()
    bare = [line for above, line in pairwise(["", *lines]) if "==" in line and line[0] != "#" and above[:1] != "#"]

    assert bare == []


def test_nothing_is_pinned_that_was_built_for_another_torch() -> None:
    # The wheels of both name the torch that they were built for: 2.10 and CUDA 12.8 (xformers' cpp_lib.json).
    pinned = {**pins("cpu.txt"), **pins("gpu.txt")}

    assert pinned.keys() & {"xformers", "torchao", "flash-attn"} == set()


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


def test_each_reporter_with_an_extra_has_one_of_its_packages() -> None:
    wanted = {name: {group[0] for group in REPORTERS[name]} for name in REPORTER_EXTRAS}

    assert {name: {Requirement(text).name for text in EXTRAS[name]} for name in REPORTER_EXTRAS} == wanted
