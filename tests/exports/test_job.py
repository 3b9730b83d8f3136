from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fastft.errors import FastftError, MachineError, RecipeError
from fastft.exports.card import CardFacts, model_card
from fastft.exports.job import Job, finish, rehearse, wanted_kinds, write
from fastft.exports.parity import Verdict
from tests.exports.tiny import read_json, write_adapter, write_base, write_json

FACTS = CardFacts("org/base", "apache-2.0", "ab12", 'name = "x"\n', {"exact match": "97 %"})


@pytest.fixture
def job(tmp_path: Path) -> Job:
    write_base(tmp_path / "base")
    write_adapter(tmp_path / "adapter", base_model_name_or_path=str(tmp_path / "base"))
    kinds = ("adapter", "merged_16bit", "q8_0")
    return Job(tmp_path / "base", tmp_path / "adapter", tmp_path / "exports", kinds)


def test_gguf_without_a_quantization_is_q8_0() -> None:
    assert wanted_kinds(("adapter", "gguf"), ()) == ("adapter", "q8_0")
    assert wanted_kinds(("merged_16bit", "gguf"), ("q4_k_m", "Q8_0")) == ("merged_16bit", "q4_k_m", "q8_0")


def test_the_rehearsal_is_within_five_percent_of_the_files(job: Job) -> None:
    sizes = rehearse(job, adapter_exists=True)
    for kind in ("merged_16bit", "q8_0"):
        written = write(job, kind).size_bytes
        # 200 bytes a tensor are allowed for headers, which weigh more in a tiny model.
        assert written <= sizes[kind] <= 1.05 * written + 200 * 21, kind


def test_the_rehearsal_names_everything_that_would_fail_at_once(job: Job) -> None:
    write_json(job.base / "config.json", read_json(job.base / "config.json") | {"architectures": ["Unknown"]})
    job.place("merged_16bit").mkdir(parents=True)
    with pytest.raises(FastftError) as caught:
        rehearse(job)
    assert [problem.wrong for problem in caught.value.problems] == [
        "exists already",
        "GGUF is not known for this model",
    ]


def test_what_failed_is_kept_under_a_name_that_nothing_loads(job: Job) -> None:
    artefacts = [write(job, kind) for kind in job.kinds]
    bad = Verdict("model-q8_0.gguf", "q8_0", ("is nearer to the base",))
    good = Verdict("merged_16bit", "merged_16bit", (), prompts=2, positions=9, top1_agreement=1.0)
    record, final = finish(job, artefacts, [good, bad], FACTS)
    assert [artefact.path.name for artefact in final] == ["adapter", "merged_16bit", "model-q8_0.gguf.FAILED"]
    entries = {entry["kind"]: entry for entry in read_json(record)["artefacts"]}
    assert entries["q8_0"]["parity"]["passed"] is False
    assert entries["merged_16bit"]["path"] == "merged_16bit"
    assert "do not use these weights" in (job.out / "gguf" / "model-q8_0.md").read_text(encoding="utf-8")
    assert not list((job.out / "gguf").glob("*.Modelfile"))


def test_the_modelfile_stops_at_the_end_token(job: Job) -> None:
    finish(job, [write(job, "q8_0")], [], FACTS)
    text = (job.out / "gguf" / "model-q8_0.Modelfile").read_text(encoding="utf-8")
    assert text == 'FROM ./model-q8_0.gguf\nPARAMETER temperature 0\nPARAMETER stop "<|im_end|>"\n'


def test_the_exported_adapter_does_not_name_a_path_of_this_machine(job: Job) -> None:
    path = write(job, "adapter").path
    assert read_json(path / "adapter_config.json")["base_model_name_or_path"] is None
    assert (path / "tokenizer.json").is_file()


def test_an_existing_export_is_never_overwritten(job: Job) -> None:
    write(job, "q8_0")
    with pytest.raises(RecipeError, match="exists already"):
        write(job, "q8_0")


def test_no_name_can_add_fields_or_markup_to_the_card() -> None:
    facts = CardFacts('x"\nlicense: mit\n---\n<script>', recipe="````\n<script>", figures={"a|b": "<b>"})
    card = model_card(facts, "q8_0", Path("m.gguf"), None)
    head, rest = card.split("\n---\n", 1)
    base = next(line for line in head.splitlines() if line.startswith("base_model"))
    assert json.loads(base.removeprefix("base_model: ")) == facts.base_model
    assert "license: mit" not in head.splitlines()
    assert "<script>" not in rest.split("## Recipe")[0]
    assert "`````toml" in rest


def test_a_damaged_record_is_found_before_anything_is_written(job: Job) -> None:
    job.out.mkdir()
    (job.out / "export.json").write_text("{", encoding="utf-8")

    with pytest.raises(FastftError, match=r"export.json: is damaged: not JSON"):
        rehearse(job, adapter_exists=True)


def test_a_card_that_cannot_be_written_is_explained(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    artefact = write(job, "q8_0")

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MachineError, match="could not be written: No space left on device"):
        finish(job, [artefact], [], FACTS)
    assert [path.name for path in artefact.path.parent.iterdir()] == [artefact.path.name]


@pytest.mark.parametrize("kind", ["merged_16bit", "q8_0"])
def test_the_bytes_that_are_reported_grow_and_reach_the_total_exactly(job: Job, kind: str) -> None:
    reported: list[tuple[int, int]] = []

    artefact = write(job, kind, lambda done, total: reported.append((done, total)))

    written = [done for done, _ in reported]
    assert written == sorted(written)
    assert len({total for _, total in reported}) == 1
    assert reported[-1][0] == reported[-1][1]
    # The rest are headers, tokenizer and padding.
    assert 0.5 * artefact.size_bytes < written[-1] <= artefact.size_bytes
