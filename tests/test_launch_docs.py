"""The files in docs/launch.md work as written: the batch script starts the ranks that the plan counts."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fastft.probe.world import find_world

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "launch.md").read_text(encoding="utf-8")

# Starts each task as Slurm does, with the variables of a step; here a task writes what it was given.
FAKE_SRUN = """#!{python}
import os, subprocess, sys
command = [part for part in sys.argv[1:] if not part.startswith("--")]
assert command == ["python", "-m", "fastft", "run", "recipe.toml"], command
nodes, each = {nodes}, {each}
for rank in range(nodes * each):
    env = dict(os.environ, SLURM_STEP_NUM_TASKS=str(nodes * each), SLURM_PROCID=str(rank),
               SLURM_LOCALID=str(rank % each), SLURM_STEP_TASKS_PER_NODE=f"{{each}}(x{{nodes}})",
               SLURM_STEP_NUM_NODES=str(nodes), SLURM_STEP_NODELIST="node[1-2]", SLURM_JOB_ID="9")
    text = "from fastft.probe.world import find_world; w = find_world(); "
    text += "print(w.rank, w.size, w.local_rank, w.address, w.port)"
    subprocess.run([sys.executable, "-c", text], env=env, check=True)
"""


def block(language: str, word: str) -> str:
    """The block of code in `language` that holds `word`."""
    return next(text for text in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if word in text)


def test_the_batch_script_starts_one_rank_a_task(tmp_path: Path) -> None:
    script = block("bash", "#SBATCH")
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", script, re.MULTILINE))
    nodes, each = int(options["nodes"]), int(options["ntasks-per-node"])
    assert each == int(options["gpus-per-node"])
    (tmp_path / "job.sh").write_text(script, encoding="utf-8")
    fake = tmp_path / "srun"
    fake.write_text(FAKE_SRUN.format(python=sys.executable, nodes=nodes, each=each), encoding="utf-8")
    fake.chmod(0o755)
    env = {name: value for name, value in os.environ.items() if name not in ("WORLD_SIZE", "RANK")}
    env |= {"PATH": f"{tmp_path}:{env['PATH']}", "PYTHONPATH": str(ROOT)}

    done = subprocess.run(["bash", "job.sh"], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)

    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[:3] for line in lines] == [[str(rank), "16", str(rank % 8)] for rank in range(16)]
    assert {line[3] for line in lines} == {"node1"}
    assert len({line[4] for line in lines}) == 1


def test_a_pod_knows_its_place() -> None:
    command = next(line for line in block("yaml", "kind: Job").splitlines() if "fastft launch" in line)

    assert re.search(r"--nnodes 2 --node-rank \$JOB_COMPLETION_INDEX --master fastft-0\.fastft --nproc 8", command)
    assert find_world({}).size == 1


def test_the_pods_find_the_first_one_by_its_service() -> None:
    service, job = yaml.safe_load_all(block("yaml", "kind: Job"))
    pod = job["spec"]["template"]["spec"]

    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert pod["subdomain"] == service["metadata"]["name"]
    mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    assert job["spec"]["completions"] == job["spec"]["parallelism"]


def test_the_sky_task_starts_one_launch_a_host(tmp_path: Path) -> None:
    task = yaml.safe_load(block("yaml", "num_nodes"))
    assert task.keys() == {"name", "num_nodes", "resources", "workdir", "file_mounts", "setup", "run"}
    (tmp_path / "fastft").write_text('#!/bin/sh\necho "$@"\n', encoding="utf-8")
    (tmp_path / "fastft").chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"}
    env |= {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_GPUS_PER_NODE": "8"}

    done = subprocess.run(["bash", "-c", task["run"]], env=env, capture_output=True, text=True, check=True)

    expected = "launch recipe.toml --nnodes 2 --node-rank 1 --master 10.0.0.1 --nproc 8 --runs-dir /runs"
    assert done.stdout.strip() == expected


def test_kubernetes_knows_every_field() -> None:
    schemas = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")

    for made in yaml.safe_load_all(block("yaml", "kind: Job")):
        schemas.validate(made, "1.31", strict=True)


def test_skypilot_knows_every_field(tmp_path: Path) -> None:
    if importlib.util.find_spec("sky") is None:
        pytest.skip("pip install skypilot")
    (tmp_path / "task.yaml").write_text(block("yaml", "num_nodes"), encoding="utf-8")
    # In a process of its own: it warns, and starts a server when asked for more.
    program = "\n".join(
        (
            "import yaml; from sky.utils import common_utils, schemas",
            "task = yaml.safe_load(open('task.yaml'))",
            "common_utils.validate_schema(task, schemas.get_task_schema(), '')",
            "common_utils.validate_schema(task['resources'], schemas.get_resources_schema(), '')",
            "for one in task['file_mounts'].values():",
            "    common_utils.validate_schema(one, schemas.get_storage_schema(), '')",
        )
    )

    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=120)


def test_the_ray_script_is_python_that_runs_a_rank() -> None:
    tree = ast.parse(block("python", "TorchTrainer"))
    calls = {ast.unparse(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}

    assert ast.literal_eval(calls["subprocess.run"].args[0])[:4] == ["python", "-m", "fastft", "run"]
    assert [word.arg for word in calls["ScalingConfig"].keywords] == ["num_workers", "use_gpu"]


@pytest.mark.parametrize("name", ["Several hosts", "Slurm", "Kubernetes", "SkyPilot", "Ray Train"])
def test_each_way_says_what_to_do_when_it_hangs(name: str) -> None:
    section = PAGE.split(f"## {name}\n")[1].split("\n## ")[0]

    assert "**When it hangs**" in section
