"""The Dockerfile as a list of instructions; its install steps run in a fresh environment."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from fastft.probe.software import TESTED

ROOT = Path(__file__).parents[1]
Instruction = tuple[str, str]


def instructions() -> list[Instruction]:
    """(name, arguments) of each instruction, continued lines joined, comments left out."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    whole = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found = [line.split(maxsplit=1) for line in whole.splitlines() if line.strip()]
    return [(name, rest) for name, rest in found]


def of(name: str) -> list[str]:
    """The arguments of every instruction of one name."""
    return [arguments for found, arguments in instructions() if found == name]


def environment() -> dict[str, str]:
    """What ENV sets."""
    return dict(pair.split("=", 1) for arguments in of("ENV") for pair in arguments.split())


def ignored(path: str) -> bool:
    """Whether .dockerignore excludes a file or folder at the top from the build."""
    verdict = False
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").split():
        if fnmatch.fnmatch(path, line.removeprefix("!")):
            verdict = not line.startswith("!")
    return verdict


def test_the_base_image_is_pinned_to_a_release() -> None:
    [base] = of("FROM")

    assert re.fullmatch(r"python:3\.(11|12)\.\d+-slim-\w+", base)


def test_the_container_is_the_program() -> None:
    assert json.loads(of("ENTRYPOINT")[-1]) == ["fastft"]
    assert of("HEALTHCHECK")[-1].endswith('CMD ["fastft", "doctor"]')


def test_its_user_is_not_root_and_installs_nothing() -> None:
    names = [name for name, _ in instructions()]
    [user] = of("USER")

    assert user not in ("root", "0")
    assert "RUN" not in names[names.index("USER") :]
    assert f"--uid 1000 {user}" in " ".join(of("RUN"))


def test_models_and_runs_are_volumes_that_the_user_can_write_to() -> None:
    volumes = json.loads(of("VOLUME")[-1])
    made = next(run for run in of("RUN") if "mkdir" in run)
    owned = re.search(r"chown -R (\w+) (.*)", made)

    assert volumes == [environment()["HF_HOME"], f"{of('WORKDIR')[-1]}/runs"]
    assert all(volume in made.split() for volume in volumes)
    assert owned is not None
    assert owned[1] == of("USER")[0]
    assert all(any(volume.startswith(folder) for folder in owned[2].split()) for volume in volumes)


@pytest.mark.parametrize("name", ["XDG_CACHE_HOME", "TRITON_CACHE_DIR"])
def test_what_is_compiled_and_converted_outlives_the_container(name: str) -> None:
    assert environment()[name].startswith(environment()["HF_HOME"] + "/")


def test_it_holds_no_secret_and_asks_for_none() -> None:
    named = [*environment(), *(argument.partition("=")[0] for argument in of("ARG"))]

    assert [name for name in named if re.search(r"TOKEN|SECRET|PASSWORD|KEY", name)] == []
    assert ignored(".env")
    assert ignored(".git")


def test_everything_that_is_copied_is_there_and_reaches_the_build() -> None:
    sources = [source for arguments in of("COPY") for source in arguments.split()[:-1]]

    assert sources
    assert [source for source in sources if not (ROOT / source).exists() or ignored(source)] == []
    assert {path.name for path in ROOT.iterdir() if not ignored(path.name)} == set(sources)


def test_triton_finds_a_compiler_and_the_package_lists_do_not_stay() -> None:
    [system] = [run for run in of("RUN") if "apt-get" in run]

    assert {"gcc", "libc6-dev", "--no-install-recommends"} <= set(system.split())
    assert system.endswith("rm -rf /var/lib/apt/lists/*")


def test_it_installs_what_make_installs() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    installs = [run for run in of("RUN") if run.startswith("pip install")]

    assert installs[0].startswith(f"pip install torch=={TESTED['torch']} ")
    assert f"torch=={TESTED['torch']}" in makefile
    assert installs[1] == "pip install --no-deps -r /opt/fastft/requirements/gpu.txt"
    assert installs[2] == "pip install --no-deps --no-build-isolation /opt/fastft"
    assert environment()["PIP_NO_CACHE_DIR"] == "1"


def test_a_change_of_the_code_leaves_the_layers_of_torch_and_the_list_alone() -> None:
    steps = [f"{name} {arguments}" for name, arguments in instructions()]
    code = next(index for index, step in enumerate(steps) if step.startswith("COPY fastft"))

    assert all("requirements" not in step and "torch" not in step for step in steps[code:])


@pytest.mark.slow
def test_its_install_steps_make_a_program_that_finds_its_packages(tmp_path: Path) -> None:
    """Only an environment that is new shows what a list forgot; it takes minutes and needs a package index.

    python -m pytest tests/test_docker.py -m slow
    """
    home = tmp_path / "environment"
    venv.create(home, with_pip=True, symlinks=True)
    values = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    values |= {"PATH": f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    smallest = [str(home / "bin" / "pip"), "download", "--quiet", "--no-deps", "--dest", str(tmp_path / "one"), "idna"]
    if subprocess.run(smallest, env=values, capture_output=True, check=False).returncode:
        pytest.skip("no package index can be reached")
    place = tmp_path / "opt"
    for name, arguments in instructions():
        if name == "COPY":
            *sources, target = arguments.replace("/opt/fastft", str(place)).split()
            for source in sources:
                _copy(ROOT / source, Path(target) / source if target.endswith("/") else Path(target))
        if name == "RUN" and arguments.startswith("pip install"):
            command = arguments.replace("/opt/fastft", str(place))
            done = subprocess.run(["sh", "-c", command], env=values, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{command}\n{done.stderr[-2000:]}"

    health = subprocess.run(
        [home / "bin" / "fastft", "doctor", "--json"],
        env=values,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    found = {finding["name"]: finding for finding in json.loads(health.stdout)}
    assert {name: found[name]["state"] for name in TESTED} == dict.fromkeys(TESTED, "ok")
    assert found["python"]["detail"] == sys.version.split()[0]


def _copy(source: Path, target: Path) -> None:
    """Copy as COPY does: the contents of a folder, or a file."""
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
