"""One fact has one place: a row that is added to a table at run time is known everywhere."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from fastft import errors
from fastft.data.formats import to_example
from fastft.data.template import FOLDER, TEMPLATES
from fastft.errors import DataError, FastftError, RecipeError, Where
from fastft.exports.gguf.quantization import BLOCKS, ModelFacts, tensor_bytes, tensor_type
from fastft.exports.job import Job, wanted_kinds
from fastft.exports.parity import bar_of
from fastft.planning.check import check
from fastft.planning.devices import SHEETS
from fastft.planning.facts import Facts
from fastft.planning.plan import make_plan
from fastft.probe.base_model import BaseModel
from fastft.probe.device import GIB, Device
from fastft.probe.software import TESTED
from fastft.recipe import reference
from fastft.recipe.data_formats import DATA_FORMATS
from fastft.recipe.loader import LoadedRecipe
from fastft.recipe.optimizers import OPTIMIZERS, Optimizer
from fastft.recipe.quantizations import QUANTIZATIONS, Quantization
from tests.docs import pages
from tests.golden import A100, CPU, row_facts

Make = Callable[..., LoadedRecipe]
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
LLAMA_WEIGHTS = 8_030_261_248
ADAPTER_WEIGHTS = 41_943_040  # of rank 16
NEW_OPTIMIZER = Optimizer(
    "muon_8bit", "muon", "Muon", 3.0, ("muon",), paged=True, on_cpu="sgd", takes_betas=True, takes_epsilon=False
)
NEW_QUANTIZATION = Quantization("q1_k", "Q2_K", "MOSTLY_Q2_K", 1.5, 4.0, 12.0, bar=0.7)
ROOT = Path(__file__).parents[1]


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Both tables hold one row more."""
    monkeypatch.setitem(OPTIMIZERS, NEW_OPTIMIZER.name, NEW_OPTIMIZER)
    monkeypatch.setitem(QUANTIZATIONS, NEW_QUANTIZATION.name, NEW_QUANTIZATION)
    _forget()
    yield
    _forget()


def _forget() -> None:
    """The reference of the recipe is made once in a process; a row that is written into a file is there before it."""
    reference.reference.cache_clear()
    reference._properties.cache_clear()


@pytest.fixture
def asked(recipe: Make, added: None) -> LoadedRecipe:
    """A recipe that asks for both new rows."""
    overrides = ("train.optim=muon_8bit", 'export.formats=["gguf"]', 'export.quantization=["q1_k"]')
    return recipe("", f"model.id={LLAMA}", "train.adam_beta1=0.8", *overrides)


def plan(loaded: LoadedRecipe, device: Device) -> dict[str, Any]:
    """The plan of 480 rows as JSON."""
    rows = row_facts([300] * 480)
    facts = Facts(device, TESTED, BaseModel(LLAMA, "hub", None), 480, None, 100 * GIB, rows)
    return make_plan(loaded, facts, "runs/x").as_json()


def test_check_accepts_the_new_rows(asked: LoadedRecipe) -> None:
    assert check(asked) is not None


def test_check_knows_which_settings_a_new_optimizer_takes(recipe: Make, added: None) -> None:
    with pytest.raises(RecipeError, match=r"train\.adam_epsilon: has no effect"):
        recipe("", "train.optim=muon_8bit", "train.adam_epsilon=1e-6")


def test_a_name_that_is_nearly_a_new_one_is_recognised(recipe: Make, added: None) -> None:
    with pytest.raises(RecipeError, match='did you mean "muon_8bit"'):
        recipe("", "train.optim=muon_8bits")
    with pytest.raises(RecipeError, match='did you mean "q1_k"'):
        recipe("", 'export.formats=["gguf"]', 'export.quantization=["q1k"]')


def test_the_plan_forecasts_memory_and_disk_of_the_new_rows(asked: LoadedRecipe) -> None:
    planned = plan(asked, A100)

    assert planned["memory"]["optimizer_bytes"] == 3 * ADAPTER_WEIGHTS
    assert planned["disk"]["gguf_bytes"] == round(LLAMA_WEIGHTS * 1.5 / 8)


def test_the_plan_passes_the_upstream_name_and_says_what_it_needs(asked: LoadedRecipe) -> None:
    for device in (A100, CPU):
        made = json.dumps(plan(asked, device))
        assert '"optim": "muon"' in made
        assert "muon_8bit needs muon, not installed" in made
    assert "nothing is paged here" in json.dumps(plan(asked, CPU))


def test_explain_schema_and_docs_list_the_new_rows(added: None) -> None:
    made = pages()

    for key, name in (("train.optim", "muon_8bit"), ("export.quantization", "q1_k")):
        assert f'"{name}"' in reference.explain(key)
        assert f'"{name}"' in made["recipe.md"]
        assert f"| `{name}` |" in made["tables.md"]
    recipe = {"model": {"id": "org/model"}, "data": {"train": "rows.jsonl"}}
    new = {"train": {"optim": "muon_8bit"}, "export": {"quantization": ["q1_k"]}}
    jsonschema.validate({**recipe, **new}, json.loads(made["recipe.schema.json"]))


def test_the_export_and_its_gate_know_a_new_quantization(added: None) -> None:
    job = Job(Path("base"), None, Path("out"), wanted_kinds(("gguf",), ("Q1_K",)))

    assert job.kinds == ("q1_k",)
    assert job.place("q1_k") == Path("out/gguf/model-q1_k.gguf")
    assert tensor_type("blk.0.attn_q.weight", (256, 256), "q1_k", ModelFacts(2, False, 1, False)) == ("Q2_K", None)
    assert bar_of("q1_k") == 0.7


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_the_bits_of_a_quantization_are_those_of_its_mix(name: str) -> None:
    shapes = {"token_embd.weight": (128_256, 4096), "output.weight": (128_256, 4096), "output_norm.weight": (4096,)}
    layer = {
        "attn_q": (4096, 4096),
        "attn_k": (1024, 4096),
        "attn_v": (1024, 4096),
        "attn_output": (4096, 4096),
        "ffn_gate": (14_336, 4096),
        "ffn_up": (14_336, 4096),
        "ffn_down": (4096, 14_336),
        "attn_norm": (4096,),
        "ffn_norm": (4096,),
    }
    shapes |= {f"blk.{number}.{part}.weight": shape for number in range(32) for part, shape in layer.items()}
    model = ModelFacts(layers=32, tied=False, grouped_heads=4, seventy_billion=False)

    size = sum(tensor_bytes(shape, tensor_type(key, shape, name, model)[0]) for key, shape in shapes.items())

    assert sum(math.prod(shape) for shape in shapes.values()) == LLAMA_WEIGHTS
    assert round(8 * size / LLAMA_WEIGHTS, 4) == QUANTIZATIONS[name].bits


def test_every_quantization_is_of_types_that_the_writer_knows() -> None:
    gguf = pytest.importorskip("gguf")

    assert {row.tensor_type for row in QUANTIZATIONS.values()} <= set(BLOCKS)
    assert {row.file_type for row in QUANTIZATIONS.values()} <= set(gguf.LlamaFileType.__members__)


def test_what_a_processor_takes_by_default_needs_no_package() -> None:
    for row in OPTIMIZERS.values():
        assert row.on_cpu is None or not OPTIMIZERS[row.on_cpu].packages


@pytest.mark.parametrize("name", DATA_FORMATS)
def test_every_data_format_is_read_and_described(name: str) -> None:
    row = dict.fromkeys(DATA_FORMATS[name], 0)

    # A number is no text or list in any format: the format's own reader refuses it, so there is one.
    with pytest.raises(DataError):
        to_example(row, name, Where("rows.jsonl", 1))
    assert f"`{name}`" in reference.reference("data.format").text
    assert f"| `{name}` |" in (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")


def test_every_chat_template_is_a_file_and_has_a_row() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.jinja")) == list(TEMPLATES)


def test_no_gpu_is_found_by_the_pattern_of_another() -> None:
    for sheet in SHEETS.values():
        assert [other.option for other in SHEETS.values() if re.search(other.pattern, sheet.name)] == [sheet.option]


def test_the_documented_exit_codes_are_those_of_the_errors() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, FastftError)]
    page = (ROOT / "docs" / "runs.md").read_text(encoding="utf-8").split("## Exit codes")[1]

    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    assert documented == {0} | {kind.exit_code for kind in kinds}
    tree = dict(re.findall(r"(\w+) +exit (\d+)", errors.__doc__ or ""))
    assert {name: int(code) for name, code in tree.items()} == {kind.__name__: kind.exit_code for kind in kinds}
