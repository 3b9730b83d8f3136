from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest

from fastft.errors import FastftError, MachineError, UsageError
from fastft.exports.card import CardFacts, model_card
from fastft.exports.job import Artefact, Job, is_kept, publish, rehearse, remove_others, wanted_kinds, write
from fastft.exports.kept import exporting_alone
from fastft.exports.ollama import go_template
from fastft.exports.parity import Verdict
from fastft.inference.llamacpp import GgufVocabulary
from fastft.stages.weights import find_gguf, find_weights
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


def make(job: Job, kind: str, verdict: Verdict | None = None) -> Artefact:
    """Write one artefact and publish it, as `fastft export` does."""
    with exporting_alone(job.out):
        return publish(job, write(job.staging, kind), verdict, FACTS, job.source)


def test_what_failed_is_kept_under_a_name_that_nothing_loads(job: Job) -> None:
    bad = Verdict("model-q8_0.gguf", "q8_0", ("is nearer to the base",))
    good = Verdict("merged_16bit", "merged_16bit", (), prompts=2, positions=9, top1_agreement=1.0)
    final = [make(job, "adapter"), make(job, "merged_16bit", good), make(job, "q8_0", bad)]
    assert [artefact.path.name for artefact in final] == ["adapter", "merged_16bit", "model-q8_0.gguf.FAILED"]
    entries = {entry["kind"]: entry for entry in read_json(job.out / "export.json")["artefacts"]}
    assert entries["q8_0"]["parity"]["passed"] is False
    assert entries["merged_16bit"]["path"] == "merged_16bit"
    assert "do not use these weights" in (job.out / "gguf" / "model-q8_0.md").read_text(encoding="utf-8")
    assert not list((job.out / "gguf").glob("*.Modelfile"))
    assert list(rehearse(job, True, job.source)) == ["q8_0"]


def test_the_modelfile_has_the_template_and_stops_at_each_end_token(job: Job) -> None:
    ends = dataclasses.replace(job, end_ids=(5, 6))
    make(ends, "q8_0")
    text = (job.out / "gguf" / "model-q8_0.Modelfile").read_text(encoding="utf-8")

    with GgufVocabulary(job.out / "gguf" / "model-q8_0.gguf") as vocabulary:
        stops = dict.fromkeys(["<|im_end|>", vocabulary.token_text(5), vocabulary.token_text(6)])
        assert vocabulary.chat_template is not None
        template = go_template(vocabulary.chat_template, vocabulary.special_tokens, vocabulary.adds_bos)
    assert template is not None
    lines = ["FROM ./model-q8_0.gguf", "PARAMETER temperature 0", f'TEMPLATE """{template}"""']
    assert text == "\n".join([*lines, *(f'PARAMETER stop "{stop}"' for stop in stops)]) + "\n"


@pytest.mark.parametrize("kind", ["adapter", "merged_16bit", "q8_0"])
def test_a_finished_artefact_is_not_made_again(job: Job, kind: str) -> None:
    made = make(job, kind)

    assert is_kept(job, kind, job.source)
    assert kind not in rehearse(job, True, job.source)
    # Its card is for people to edit.
    card = made.path / "README.md" if made.path.is_dir() else made.path.parent / f"model-{kind}.md"
    card.write_text("edited", encoding="utf-8")
    assert is_kept(job, kind, job.source)


@pytest.mark.parametrize("kind", ["adapter", "merged_16bit", "q8_0"])
def test_an_artefact_of_other_weights_is_refused_or_removed_but_never_taken(job: Job, kind: str) -> None:
    made = make(job, kind)
    shutil.rmtree(job.base.parent / "adapter")
    write_adapter(job.base.parent / "adapter", seed=5)

    with pytest.raises(MachineError, match="exists already, and was made of other weights"):
        is_kept(job, kind, job.source)
    assert remove_others(job, job.source) == (kind,)
    assert not made.path.exists()


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("kind", ["merged_16bit", "q8_0"])
def test_an_artefact_that_changed_in_one_bit_is_refused_by_name_everywhere(job: Job, kind: str) -> None:
    made = make(job, kind)
    flip(made.path / "model.safetensors" if made.path.is_dir() else made.path)

    for refused in (lambda: rehearse(job, True, job.source), lambda: find_weights(made.path)):
        with pytest.raises(MachineError, match=f"{made.path.name}: is damaged: .*not what was written") as caught:
            refused()
        assert len(caught.value.problems) == 1
    assert find_gguf_refuses(job) == (kind == "q8_0")


def find_gguf_refuses(job: Job) -> bool:
    """Whether `fastft serve` on the folder of the exports refuses its only GGUF file as damaged."""
    try:
        find_gguf(job.out / "gguf")
    except UsageError:  # there is none
        return False
    except MachineError as error:
        return "is damaged" in str(error)
    return False


def test_a_file_that_nobody_recorded_is_never_overwritten(job: Job) -> None:
    job.place("q8_0").parent.mkdir(parents=True)
    job.place("q8_0").write_bytes(b"somebody's")

    with pytest.raises(MachineError, match=r"q8_0.gguf: exists already; choose another --out"):
        rehearse(job, True, job.source)


def test_what_a_killed_process_left_half_written_is_removed(job: Job) -> None:
    write(job.staging, "q8_0")

    assert not job.place("q8_0").exists()
    assert "q8_0" in rehearse(job, True, job.source)
    assert make(job, "q8_0").path == job.place("q8_0")
    assert not job.staging.out.exists()


def test_a_kill_between_record_and_name_is_no_finished_artefact(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fastft.exports.job.move", killed)
    with pytest.raises(KeyboardInterrupt):
        make(job, "q8_0")
    monkeypatch.undo()

    assert "q8_0" in rehearse(job, True, job.source)
    make(job, "q8_0")
    assert is_kept(job, "q8_0", job.source)


def test_two_processes_do_not_export_into_one_folder(job: Job) -> None:
    with exporting_alone(job.out), pytest.raises(MachineError, match="another process exports into this folder"):
        make(job, "q8_0")


def test_the_exported_adapter_does_not_name_a_path_of_this_machine(job: Job) -> None:
    path = write(job, "adapter").path
    assert read_json(path / "adapter_config.json")["base_model_name_or_path"] is None
    assert (path / "tokenizer.json").is_file()


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
    artefact = write(job.staging, "q8_0")

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MachineError, match="could not be written: No space left on device"):
        publish(job, artefact, None, FACTS, job.source)
    assert not job.place("q8_0").exists()


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
