from __future__ import annotations

import math
from pathlib import Path

import pytest

from fastft.errors import MachineError
from fastft.exports.parity import Verdict
from fastft.exports.record import ExportRecord, RecordedArtefact, add_exports, read_exports
from fastft.report.export import print_exports
from tests.exports.tiny import read_json, write_json

PROVEN = Verdict(
    "merged_16bit", "merged_16bit", (), prompts=2, positions=9, top1_agreement=1.0, agreement=1.0, bar=0.99
)
FAILED = Verdict("m-q8_0.gguf", "q8_0", ("is nearer to the base",), agreement=0.5, bar=0.98, mean_kl=math.inf)
MERGED = RecordedArtefact("merged_16bit", "merged_16bit", 2**20, 1.5, ("bfloat16: as the base",), PROVEN)
QUANTIZED = RecordedArtefact("q8_0", "gguf/m-q8_0.gguf.FAILED", 2**19, 0.5, (), FAILED)
PLAIN = RecordedArtefact("adapter", "adapter", 100, 0.0)

# As version 0.1 wrote it, with every field.
EARLIER = {
    "artefacts": [
        {
            "kind": "q8_0",
            "path": "gguf/m-q8_0.gguf",
            "size_bytes": 144783072,
            "seconds": 4.2,
            "notes": ["2 tensors are Q5_0"],
            "parity": {
                "artefact": "m-q8_0.gguf",
                "kind": "q8_0",
                "reasons": [],
                "prompts": 16,
                "positions": 365,
                "top1_agreement": 1.0,
                "agreement": 1.0,
                "bar": 0.98,
                "mean_kl": 0.002,
                "mean_kl_from_base": 3.1,
                "mean_kl_base_trained": 3.0,
                "equal_prompts": 16,
                "seconds": 20,
                "passed": True,
            },
        },
        {"kind": "adapter", "path": "adapter", "size_bytes": 10, "seconds": 0.0, "notes": [], "parity": None},
    ]
}


def test_what_is_recorded_is_read_back(tmp_path: Path) -> None:
    add_exports(tmp_path, [MERGED, QUANTIZED, PLAIN])

    assert read_exports(tmp_path) == ExportRecord((MERGED, QUANTIZED, PLAIN))
    parities = [entry["parity"] for entry in read_json(tmp_path / "export.json")["artefacts"]]
    assert [parity and parity["passed"] for parity in parities] == [True, False, None]


def test_earlier_artefacts_stay_while_their_files_do(tmp_path: Path) -> None:
    (tmp_path / "merged_16bit").mkdir()
    add_exports(tmp_path, [MERGED, PLAIN])

    add_exports(tmp_path, [QUANTIZED])

    assert read_exports(tmp_path).artefacts == (MERGED, QUANTIZED)


def test_a_file_without_a_version_is_read(tmp_path: Path) -> None:
    write_json(tmp_path / "export.json", EARLIER)

    quantized, adapter = read_exports(tmp_path).artefacts

    assert quantized.parity == Verdict("m-q8_0.gguf", "q8_0", (), 16, 365, 1.0, 1.0, 0.98, 0.002, 3.1, 3.0, 16, 20.0)
    assert adapter.parity is None


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ('{"artefacts": [', "not JSON"),
        ("[]", "not a JSON object"),
        ("{}", "artefacts: Field required"),
        ('{"artefacts": [{"kind": "q8_0", "path": "m", "seconds": 1}]}', "artefacts.0.size_bytes: Field required"),
        ('{"artefacts": [7]}', "artefacts.0: Input should be"),
    ],
)
def test_a_damaged_record_is_one_problem_that_names_the_file(tmp_path: Path, text: str, wrong: str) -> None:
    (tmp_path / "export.json").write_text(text, encoding="utf-8")

    with pytest.raises(MachineError) as raised:
        print_exports(tmp_path)

    (problem,) = raised.value.problems
    assert problem.where.path == str(tmp_path / "export.json")
    assert problem.wrong.startswith(f"is damaged: {wrong}")
    assert problem.instead == "move it away: the next export starts a new one"


def test_the_table_names_each_artefact_with_its_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    add_exports(tmp_path, [MERGED, QUANTIZED, PLAIN])

    print_exports(tmp_path)

    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert any(line.startswith("merged_16bit │ 1 MiB │ 100.0%") and line.endswith("proven") for line in lines)
    assert any(line.startswith("adapter │ 100 B") and line.endswith("not compared") for line in lines)
    assert any("FAILED" in line and "50.0%" in line and "inf" in line for line in lines)
