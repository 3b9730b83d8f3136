"""Properties of what reads files, on made-up content: an answer of its own, or one error of fastft."""

from __future__ import annotations

import io
import json
import math
import tempfile
from contextlib import suppress
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fastft.data.json_rows import read_json, read_json_lines
from fastft.errors import FastftError
from fastft.files.records import read_record, write_record
from fastft.files.seal import SEAL, damage, write_seal
from fastft.recipe.loader import load
from fastft.runs.directory import RunDir
from fastft.runs.held_out import Answers, MicroBatch, Untrained
from fastft.runs.history import read_history
from fastft.runs.manifest import Manifest
from fastft.runs.metrics import EvaluationMetrics, History, MetricsFile, StepMetrics
from fastft.runs.result import Result
from tests.report.made_up import RESULT

# The same cases each time: a test of today does not fail tomorrow. About a second a test.
BOUNDED = settings(
    derandomize=True, deadline=None, max_examples=150, database=None, suppress_health_check=list(HealthCheck)
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
COUNTS = st.integers(0, 10**12)
STEPS = st.builds(
    StepMetrics, COUNTS, COUNTS, st.floats(), st.floats(), st.floats(), st.none() | st.floats(), COUNTS, COUNTS,
    st.floats(0, 1e9), COUNTS,
)  # fmt: skip


@BOUNDED
@given(st.binary(max_size=80) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_content_of_a_file_of_a_run_is_read_or_one_error(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        run = RunDir(Path(name))
        for kind in (Manifest, Untrained, Result):
            (run.path / kind.FILE).write_bytes(content)
            with suppress(FastftError):
                run.read(kind)
            (run.path / kind.FILE).unlink()
        run.metrics.write_bytes(content + b"\n")
        with suppress(FastftError):
            read_history(run)
        (run.path / SEAL).write_bytes(content)
        assert damage(run.path)


@BOUNDED
@given(st.integers(0), st.integers(0, 7))
def test_no_flipped_bit_of_a_record_gives_another_record(place: int, bit: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "result.json"
        write_record(path, RESULT)
        content = bytearray(path.read_bytes())
        content[place % len(content)] ^= 1 << bit
        path.write_bytes(content)
        with suppress(FastftError):
            assert read_record(path, Result) == RESULT


@BOUNDED
@given(
    st.none() | st.floats(allow_nan=False),
    st.lists(st.text(st.characters(exclude_categories=["Cs"]))),
    st.lists(st.builds(MicroBatch, st.floats(allow_nan=False), COUNTS)),
)
def test_every_record_is_read_back_as_it_was_written(
    loss: float | None, texts: list[str], batches: list[MicroBatch]
) -> None:
    written = Untrained(loss, Answers(tuple(texts), len(texts)), tuple(batches))
    with tempfile.TemporaryDirectory() as name:
        write_record(Path(name) / "before.json", written)

        assert read_record(Path(name) / "before.json", Untrained) == written


@BOUNDED
@given(st.lists(STEPS, max_size=4), st.dictionaries(st.sampled_from(["eval_loss", "epoch"]), st.floats(-9, 9)))
def test_every_line_of_metrics_is_read_back_as_it_was_written(
    steps: list[StepMetrics], figures: dict[str, float]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        metrics = MetricsFile(Path(name) / "metrics.jsonl")
        for step in steps:
            metrics.append(step)
        metrics.append(EvaluationMetrics(3, figures))
        read = metrics.history()

    assert isinstance(read, History)
    assert repr(read.steps) == repr(tuple(steps))  # by their text: NaN is not equal to itself
    assert read.evaluations == (EvaluationMetrics(3, figures),)


@BOUNDED
@given(st.dictionaries(st.text("abc./ ", min_size=1, max_size=5), st.binary(max_size=9), max_size=3), st.data())
def test_a_sealed_folder_is_whole_until_a_file_of_it_changes(files: dict[str, bytes], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, content in enumerate(files.values()):
            (folder / f"file-{number}").write_bytes(content)
        (folder / "always").write_bytes(b"something")
        write_seal(folder)
        assert damage(folder) is None
        changed = data.draw(st.sampled_from(sorted(path.name for path in folder.iterdir() if path.name != SEAL)))
        (folder / changed).write_bytes((folder / changed).read_bytes() + b"x")

        assert changed in str(damage(folder))


@BOUNDED
@given(
    st.text(max_size=60)
    | st.dictionaries(
        st.sampled_from(["model.id", "train.seed", "train.learning_rate", "lora.r", "data.train", "train"]), VALUES
    ).map(lambda values: "\n".join(f"{key} = {json.dumps(value)}" for key, value in values.items()))
)
@example("[" * 500)
def test_any_text_of_a_recipe_is_a_recipe_or_one_error(text: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "made.toml"
        path.write_text(text, encoding="utf-8", errors="replace")
        try:
            loaded = load(path, [])
        except FastftError as error:
            assert all(problem.where.path for problem in error.problems)  # noqa: PT017
        else:
            assert math.isfinite(loaded.recipe.train.learning_rate)


@BOUNDED
@given(st.lists(st.binary(max_size=30) | VALUES.map(lambda value: json.dumps(value).encode()), max_size=4))
def test_each_line_of_a_data_file_is_a_row_or_a_problem_with_its_line(lines: list[bytes]) -> None:
    content = b"\n".join(lines)
    for read in (read_json_lines, read_json):
        with suppress(FastftError):
            for row in read(io.BytesIO(content), "made.jsonl"):
                assert row is not None
