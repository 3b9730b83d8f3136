"""The README's promise, kept by the README's own recipe."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GIB = 1024**3


@pytest.mark.slow
def test_the_quickstart_teaches_the_model_what_the_data_says(tmp_path: Path) -> None:
    """Only a whole run of a real model shows that conversion, masks, training and generation work together."""
    command = [
        sys.executable,
        "-m",
        "fastft",
        "run",
        str(ROOT / "recipes/quickstart.toml"),
        "--runs-dir",
        str(tmp_path),
    ]

    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)

    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "quickstart/result.json").read_text())
    match = result["exact_match"]
    assert match["before"] / match["rows"] < 0.05
    assert match["after"] / match["rows"] >= 0.80
    assert result["eval_loss"]["after"] < result["eval_loss"]["before"] / 2
    assert result["peak_memory_bytes"] < 4 * GIB
    assert (tmp_path / "quickstart/adapter/adapter_model.safetensors").is_file()
    assert "held-out exact match" in done.stdout
    gguf = tmp_path / "quickstart/exports/gguf/quickstart-q8_0.gguf"
    assert abs(answered_in_chat(gguf) - match["after"]) <= 0.03 * match["rows"]


def answered_in_chat(gguf: Path) -> int:
    """How many held-out rows the exported file answers exactly, through `fastft chat`."""
    lines = (ROOT / "recipes/data/support_triage/eval.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [[turn["content"] for turn in json.loads(line)["messages"]] for line in lines]
    asked = "".join(f"{question}\n/reset\n" for _, question, _ in rows)

    done = subprocess.run(
        [sys.executable, "-m", "fastft", "chat", str(gguf)], input=asked, capture_output=True, text=True, check=True
    )

    assert "with the system prompt of the held-out rows, 'Triage.'" in done.stderr
    answers = [f"type:{answer}".strip() for answer in f"\n{done.stdout}".split("\ntype:")[1:]]
    assert len(answers) == len(rows) == 50
    return sum(answer == reference for answer, (_, _, reference) in zip(answers, rows, strict=True))
