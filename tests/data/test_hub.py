"""Hub datasets without a network: read from a cache in the form that `datasets` itself writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fastft.data import hub
from fastft.data.hub import hub_sha256, read_hub_rows
from fastft.data.prepare import prepare
from fastft.data.readers import count_rows
from fastft.data.tokenizer import TokenizerFacts
from fastft.errors import DataError, MachineError, Where
from fastft.recipe.model import DataSection

datasets = pytest.importorskip("datasets", reason="Hub datasets need the training extra")
pyarrow = pytest.importorskip("pyarrow")
Cached = Callable[..., None]
ROWS = [{"prompt": f"question {number}", "completion": f"answer {number}"} for number in range(30)]


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cached]:
    """Puts rows into the cache as a revision of org/name; the latest one is what `datasets` reads."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    hub._loaded.cache_clear()

    def put(rows: list[dict[str, Any]], revision: str = "a" * 40, configuration: str = "default") -> None:
        hub._loaded.cache_clear()
        folder = tmp_path / "hub" / "org___name" / configuration / "0.0.0" / revision
        folder.mkdir(parents=True)
        splits = {}
        for split, taken in (("train", rows), ("test", rows[:3])):
            table = pyarrow.Table.from_pylist(taken)
            with pyarrow.ipc.new_stream(str(folder / f"name-{split}.arrow"), table.schema) as writer:
                writer.write_table(table)
            splits[split] = {"name": split, "num_bytes": 1, "num_examples": len(taken), "dataset_name": "name"}
        features = {name: {"dtype": "string", "_type": "Value"} for name in rows[0]}
        info = {"features": features, "builder_name": "parquet", "dataset_name": "name", "config_name": configuration}
        info |= {"version": {"version_str": "0.0.0", "major": 0, "minor": 0, "patch": 0}, "splits": splits}
        (folder / "dataset_info.json").write_text(json.dumps(info))

    yield put
    hub._loaded.cache_clear()


def test_rows_are_read_with_their_number(cached: Cached) -> None:
    cached(ROWS)
    found = list(read_hub_rows("org/name"))
    assert [row for _, row in found] == ROWS
    assert found[29][0] == Where("org/name", 30)


def test_a_split_and_a_configuration_can_be_named(cached: Cached) -> None:
    cached(ROWS)
    cached(ROWS[10:], configuration="hard")
    assert [row for _, row in read_hub_rows("org/name/hard:test")] == ROWS[10:13]
    assert [row for _, row in read_hub_rows("org/name/default:train[:2]")] == ROWS[:2]


@pytest.mark.parametrize(
    ("source", "error", "expected"),
    [
        ("org/name:other", DataError, 'Unknown split "other"'),
        ("org/name/other:train", DataError, "write org/name/configuration:split"),
        ("org/missing", MachineError, "the Hub cannot be reached, and this dataset is not in its cache"),
    ],
)
def test_what_is_not_there_is_named(cached: Cached, source: str, error: type[Exception], expected: str) -> None:
    cached(ROWS)
    with pytest.raises(error, match=f"^{source}: data.eval: ") as caught:
        list(read_hub_rows(source, "data.eval"))
    assert expected in str(caught.value)


def test_rows_in_the_cache_are_counted_without_a_network(cached: Cached, tmp_path: Path) -> None:
    cached(ROWS)

    assert count_rows("org/name", tmp_path) == 30
    assert count_rows("org/name:test", tmp_path) == 3
    assert count_rows("org/missing", tmp_path) is None


def test_the_digest_follows_revision_and_split(cached: Cached) -> None:
    cached(ROWS)
    digests = [hub_sha256("org/name"), hub_sha256("org/name:test")]
    hub._loaded.cache_clear()
    assert hub_sha256("org/name") == digests[0]
    cached(ROWS, "b" * 40)
    digests.append(hub_sha256("org/name"))
    assert len(set(digests)) == 3


def test_prepared_rows_of_a_hub_dataset_are_mapped_until_its_revision_changes(
    cached: Cached, tmp_path: Path, chatml: TokenizerFacts, locate: Callable[[str], Where]
) -> None:
    def read() -> tuple[list[int], list[int | None]]:
        seen: list[int] = []
        made = prepare(
            DataSection(train="org/name"),
            chatml,
            max_seq_length=99,
            seed=7,
            recipe_dir=tmp_path,
            locate=locate,
            cache_dir=tmp_path / "cache",
            progress=seen.append,
        )
        return seen, [row.where.line for row in made.train.rows]

    cached(ROWS)
    assert read() == ([30], list(range(1, 31)))
    assert read() == ([], list(range(1, 31)))
    cached(ROWS[:20], "b" * 40)
    assert read() == ([20], list(range(1, 21)))
