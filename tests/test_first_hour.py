"""What a new user types wrong, has in an odd form, or lacks: each is one message that says what to write instead."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fastft.cli import main

ROOT = Path(__file__).parents[1]
RECIPE = '[model]\nid = "org/model"\nmax_seq_length = 96\n\n[data]\ntrain = "rows.jsonl"\n'
TURNS = [{"role": "user", "content": "Capital of Peru?"}, {"role": "assistant", "content": "Lima."}]
ROWS = (json.dumps({"messages": TURNS}) + "\n") * 12


@dataclass(frozen=True)
class Case:
    """A command with `code`, and `said` on its output and errors; `files` are written first, beside r.toml."""

    command: str
    code: int
    said: str
    files: Mapping[str, str | bytes] = field(default_factory=dict)


def with_lines(lines: str) -> dict[str, str | bytes]:
    return {"r.toml": RECIPE + lines}


KEYS = (
    Case("check r.toml --set lora.rank=8", 2, "did you mean r?"),
    Case("check r.toml --set lora.target_modules=q_proj", 0, "sound"),
    Case("check r.toml --set train.lr=1e-4", 2, "did you mean learning_rate?"),
    Case("check r.toml --set training.lr=1e-4", 2, "[train]? write lr as train.learning_rate"),
    Case("check r.toml --set dataset.path=x", 2, "[data]? write path as data.train"),
    Case("check r.toml --set =5", 2, "is not section.key=value"),
    Case("check r.toml --set train.=5", 2, "is not section.key=value"),
    Case("check r.toml --set train.learning_rate=", 2, 'got ""'),
    Case("check r.toml --set train.learning_rate=fast", 2, "write a number"),
    Case("check r.toml --set train.max_steps=5.5", 2, "write a whole number"),
    Case("check r.toml --set train.optim=adamw_8bits", 2, 'did you mean "adamw_8bit"?'),
    Case("check r.toml --set 'train.seed = 7'", 0, "sound"),
    Case("check r.toml --set model=x", 2, "write --set model.id=x"),
    Case("check r.toml --set a.b.c=1", 2, "is not section.key=value"),
    Case("sweep r.toml --set lora.rank=8,16", 2, "did you mean r?"),
    Case("explain lr", 2, "did you mean train.learning_rate?"),
    Case("explain qwertyuiop", 2, "lists the sections"),
    Case("plan r.toml --what-if lr=1e-4,2e-4", 2, "did you mean train.learning_rate?"),
    Case("plan r.toml --what-if lora.r=8,x", 2, "write a whole number"),
)
FILES = (
    Case("check nothere.toml", 2, "did you mean r.toml?"),
    Case("check .", 2, "is a folder"),
    Case("check r.yaml", 2, "`fastft convert r.yaml`", {"r.yaml": "base_model: x\nlr: 3\n"}),
    Case("check r.json", 2, "a recipe is TOML", {"r.json": '{"model": 1}'}),
    Case("check r.toml", 2, "model: is missing", {"r.toml": ""}),
    Case("check r.toml", 2, "save the file as UTF-8", {"r.toml": b"\xff\xfe" + RECIPE.encode("utf-16-le")}),
    Case("check r.toml", 0, "sound", {"r.toml": RECIPE.replace("\n", "\r\n").encode()}),
    Case("check r.toml", 0, "sound", {"r.toml": b"\xef\xbb\xbf" + RECIPE.encode()}),
    Case("check r.toml", 2, "did you mean [train]? write lr as", with_lines("[training]\nlr = 1e-4\n")),
    Case("check r.toml", 2, "did you mean r?", with_lines("[lora]\nrank = 4\n")),
    Case("check r.toml", 2, "(U+201C)", with_lines("[train]\noptim = \u201cadamw_8bit\u201d\n")),
    Case("check r.toml", 2, "(U+2013)", with_lines("[train]\nlearning_rate = 2e\u20134\n")),
    Case("check r.toml", 3, "has no rows", {"rows.jsonl": ""}),
    Case("check r.toml", 3, "rows.jsonl:1: data.format", {"rows.jsonl": "{}\n"}),
    Case("check r.toml", 3, "not valid JSON", {"rows.jsonl": "not json\n"}),
    Case("check r.toml", 3, "a row is a JSON object", {"rows.jsonl": "[]"}),
)
OPTIONS = (
    Case("train r.toml --set train.seed=3", 2, "write: fastft run r.toml --set train.seed=3"),
    Case("validate r.toml", 2, "write: fastft check r.toml"),
    Case("r.toml", 2, "write: fastft run r.toml"),
    Case("ru r.toml", 2, "Did you mean 'run'"),
    Case("run r.toml --epochs 3", 2, "--set train.num_train_epochs=VALUE"),
    Case("plan r.toml --learning-rate 3", 2, "--set train.learning_rate=VALUE"),
    Case("run", 2, "Missing argument 'RECIPE'"),
    Case("run r.toml --resume nothere", 2, "there is no such run"),
    Case("plan r.toml --device rtx9999", 2, "known: a100-40gb"),
    Case("plan r.toml --device a100", 2, "did you mean a100-40gb or a100-80gb?"),
    Case("plan r.toml --memory 24", 2, "write --memory 24GB"),
    Case("plan r.toml --device l4 --memory 0GB", 2, "is not a size"),
    Case("plan r.toml --price-per-hour -1", 2, "greater than or equal to 0"),
    Case("plan r.toml --devices 8 --device h100 --engine deepspeed", 2, "known: ddp"),
    Case("plan r.toml --devices 8", 2, "name one: --device h100"),
)
PLACES = (
    Case("export nothere", 2, "there is no such file or folder"),
    Case("export r.toml --to gguf", 2, "holds no weights"),
    Case("chat r.toml --prompt hi", 2, "holds no weights"),
    Case("serve nothere", 2, "there is no such file or folder; name a run's folder"),
    Case("report .", 2, "is no folder of a run"),
    Case("runs nothere", 2, "there is no such folder"),
    Case("runs .", 0, "no runs in ."),
    Case("compare r", 2, "needs 2 to 6 runs"),
    Case("compare . .", 2, "is no folder of a run"),
    Case("watch . --once", 2, "is no folder of a run"),
    Case("clean nothere", 2, "there is no such folder"),
    Case("reproduce nothere", 2, "is no finished run"),
    Case("convert nothere.yml", 2, "No such file"),
    Case("convert r.toml", 2, "a recipe is already"),
    Case("convert a.yml", 2, "is no YAML table", {"a.yml": ""}),
    Case("convert a.yml", 2, "a.yml:1: is not valid YAML", {"a.yml": "a: ["}),
    Case("convert a.yml", 2, "is not valid YAML", {"a.yml": b"\x00\x01"}),
    Case("convert a.ipynb", 2, "is no notebook", {"a.ipynb": "{}"}),
    Case("convert a.py", 2, "is no Python", {"a.py": "x = ("}),
)
INIT = (
    Case("init r", 2, "r.toml: exists already"),
    Case("init x --device nope", 2, "there is no such device"),
    Case("init x --data nothere.csv", 3, "no such file"),
    Case("init no/such/x", 2, "name a file in a folder that exists"),
    Case("init x --model ''", 2, "is empty"),
    Case("init x --task clasification", 2, "did you mean classification?"),
    Case("init x --task classification --data rows.jsonl", 3, "no column of texts beside one of labels"),
    Case("init x --task preference --data rows.jsonl", 3, "no columns chosen and rejected"),
)
ALL = (*KEYS, *FILES, *OPTIONS, *PLACES, *INIT)


def call(command: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["fastft", *shlex.split(command)])
    with pytest.raises(SystemExit) as done:
        main()
    return int(done.value.code or 0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a recipe r.toml and its rows."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.toml").write_text(RECIPE)
    (tmp_path / "rows.jsonl").write_text(ROWS)
    return tmp_path


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.command)
def test_the_message_says_what_to_write_instead(
    case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in case.files.items():
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())

    code = call(case.command, monkeypatch)

    out, err = capsys.readouterr()
    assert (code, case.said in out + err) == (case.code, True), out + err
    assert "Traceback" not in out + err


@pytest.mark.parametrize(
    "command",
    [
        *("check n.toml", "plan n.toml", "preview n.toml", "data n.toml", "run n.toml", "tune n.toml"),
        *("sweep n.toml --set lora.r=8", "export n", "runs n", "clean n", "compare n", "convert n.yml"),
        *("plan r.toml --no-such-option", "run r.toml --until 2", "no-such-command", "doctor --trian"),
    ],
)
def test_what_went_wrong_is_json_too(
    command: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = call(f"{command} --json", monkeypatch)

    said = json.loads(capsys.readouterr().out)
    assert code == 2
    problems = said[0]["problems"] if command.startswith("check") else said["problems"]
    assert problems[0].keys() == {"file", "line", "field", "wrong", "got", "instead"}


@pytest.mark.parametrize(
    ("arguments", "rows", "wanted"),
    [
        (
            "--task classification",
            "review,sentiment\nnice,good\nugly,bad\n",
            'columns = { text = "review", label = "sent',
        ),
        ("", '{"question": "a?", "chosen": "b", "rejected": "c"}\n', 'columns = { prompt = "question" }'),
        ("--task preference", '{"prompt": "a?", "chosen": "b", "rejected": "c"}\n', 'task = "preference"'),
        ("", '{"instruction": "a?", "output": "b"}\n', 'format = "alpaca"'),
        ("", '{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}\n', '"sharegpt"'),
    ],
)
def test_init_knows_the_rows(
    arguments: str, rows: str, wanted: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, body = rows.split("\n", 1) if "review" in rows else ("", rows)
    name = "mine.csv" if head else "mine.jsonl"
    (folder / name).write_text((head + "\n" if head else "") + body * 12)

    assert call(f"init x --model org/model --data {name} {arguments}", monkeypatch) == 0
    assert wanted in (folder / "x.toml").read_text()
    assert call("check x.toml", monkeypatch) == 0


@pytest.mark.parametrize("task", ["sft", "classification", "preference"])
def test_init_writes_rows_of_its_task(task: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(f"init x --model org/model --task {task}", monkeypatch) == 0
    assert call("check x.toml", monkeypatch) == 0


def test_quiet_leaves_out_progress_and_verbose_adds_the_traceback(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "a.yml").write_text("model_name_or_path: org/model\ndataset_name: org/rows\n")
    call("convert a.yml", monkeypatch)
    assert "arguments" in capsys.readouterr().err
    call("convert a.yml --quiet", monkeypatch)
    quiet = capsys.readouterr()
    assert quiet.err == ""
    assert "org/rows" in quiet.out

    call("--verbose check nothere.toml", monkeypatch)
    call("report nothere --verbose", monkeypatch)
    assert "Traceback" in capsys.readouterr().err
    call("report nothere", monkeypatch)
    assert "Traceback" not in capsys.readouterr().err


def program(*arguments: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """The program in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(
        [sys.executable, "-m", "fastft", *arguments], capture_output=True, env=environment, check=False
    )


def test_case_1_without_httpx_the_hub_is_one_line(folder: Path) -> None:
    """As with huggingface_hub 2, which brings a package of another name: `make installations` tries that one."""
    code = "import sys; sys.modules['httpx'] = None; sys.argv[1:] = ['preview', 'r.toml']; "
    code += "from fastft.cli import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=False)

    assert done.returncode == 4
    assert len(done.stderr.decode().splitlines()) == 1


def test_cases_5_and_6_an_ascii_terminal_and_a_cache_that_is_a_file(folder: Path) -> None:
    (folder / "file").touch()

    shown = program(
        "plan", "r.toml", "--device", "h100", PYTHONIOENCODING="cp1252", XDG_CACHE_HOME=str(folder / "file")
    )

    assert (shown.returncode, shown.stderr) == (0, b"")
    assert "target_modules" in shown.stdout.decode("cp1252")


def test_cases_4_7_and_8_of_keys(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("check r.toml --set export.formats=gguf", monkeypatch) == 0

    assert call("plan r.toml --set train.save_steps=5", monkeypatch) == 0
    assert 'means save_strategy = "steps"' in " ".join(capsys.readouterr().out.split())

    assert call("check r.toml --set max_steps=5", monkeypatch) == 2
    assert "write --set train.max_steps=5" in capsys.readouterr().err


def test_a_run_without_the_locks_of_posix_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on Windows, where the commands that train nothing work: tests/test_startup.py."""
    monkeypatch.setitem(sys.modules, "fcntl", None)

    assert call("run r.toml", monkeypatch) == 4
    assert capsys.readouterr().err.endswith("which it needs; use Linux, macOS or WSL 2\n")
    assert not (folder / "runs").exists()
