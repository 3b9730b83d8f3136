"""The report page: whole, correct, and safe whatever the texts of data and model are."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fastft.errors import MachineError
from fastft.files.atomic import write_json
from fastft.files.records import read_record
from fastft.report.charts import Line, line_chart, smoothed, thinned
from fastft.report.html import element, escaped
from fastft.report.page import write_page
from fastft.runs.planned import Planned
from fastft.runs.result import BeforeAfter
from tests.golden import RECIPES, golden_plan
from tests.report.made_up import HOSTILE, RESULT, hostile_answers, make_run

VOID = {"meta", "wbr"}
# All that the page is made of: none of them loads or runs anything.
KNOWN = frozenset(
    [
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "section",
        "h1",
        "h2",
        "h3",
        "p",
        "div",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "code",
        "pre",
        "details",
        "summary",
        "figure",
        "figcaption",
        "svg",
        "line",
        "rect",
        "g",
        "path",
        "circle",
        "text",
        "ins",
        "del",
        "i",
        "wbr",
    ]
)
SAFE = frozenset(
    [
        "lang",
        "charset",
        "name",
        "content",
        "http-equiv",
        "class",
        "viewbox",
        "role",
        "aria-label",
        "x",
        "y",
        "x1",
        "x2",
        "y1",
        "y2",
        "width",
        "height",
        "cx",
        "cy",
        "r",
        "d",
        "text-anchor",
        "transform",
    ]
)


class Parsed(HTMLParser):
    """The page as a browser reads it: its text, tag by tag, and every name that is not KNOWN or SAFE."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.strange: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.strange += [tag] * (tag not in KNOWN) + [name for name, _ in attrs if name not in SAFE]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.strange.append(f"/{tag}")

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def handle_comment(self, data: str) -> None:
        self.strange.append(f"<!--{data}")

    def of(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag]

    @property
    def text(self) -> str:
        return "\n".join(text for tag, text in self.texts if tag != "style")


def parsed(path: Path) -> Parsed:
    return Parsed(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a finished run whose texts are hostile."""
    result = dataclasses.replace(RESULT, exact_match=hostile_answers())
    return write_page(make_run(tmp_path_factory.mktemp("runs") / "hostile", result=result))


def test_no_text_of_data_or_model_becomes_markup(page: Path) -> None:
    made = parsed(page)

    assert made.strange == []
    assert made.open == []
    for text in HOSTILE[:4]:
        assert text in made.text, "the text itself is shown"


def test_unescaped_text_would_be_seen() -> None:
    assert Parsed(f"<p>{HOSTILE[0]}</p>").strange
    assert Parsed(f'<p class="{HOSTILE[1]}">x</p>').strange
    assert Parsed(f"<pre>{HOSTILE[2]}</pre>").strange


def test_what_no_page_can_hold_is_replaced() -> None:
    made = element("p", HOSTILE[4], title=HOSTILE[1])

    made.encode("utf-8")
    assert "\x00" not in made
    assert "\x1b" not in made
    assert Parsed(made).of("p") == [HOSTILE[4].translate({0: "\ufffd", 0x1B: "\ufffd", 0xD800: "\ufffd"})]


def test_secrets_are_hidden() -> None:
    assert "hf_" not in escaped("token: hf_abcdefghijklmnopqrstuvwx")


def test_the_page_loads_nothing_and_runs_nothing(page: Path) -> None:
    text = page.read_text()

    # Addresses may stand in texts; what loads is an attribute or a style, and `SAFE` has no such attribute.
    assert not re.search(r"url\(|@import|javascript:", text)
    assert "default-src 'none'" in text
    assert page.stat().st_size < 200_000


def test_the_first_line_is_the_verdict(page: Path) -> None:
    assert parsed(page).of("h1") == [
        "Better: the held-out loss fell from 3.0000 to 0.2500 and exact matches went from 2 to 2 of 4."
    ]


def test_a_run_that_made_the_model_worse_says_so_first(tmp_path: Path) -> None:
    worse = dataclasses.replace(RESULT, eval_loss=BeforeAfter(0.25, 3.0))

    made = parsed(write_page(make_run(tmp_path / "worse", result=worse)))

    assert made.of("h1") == ["Worse: the held-out loss rose from 0.2500 to 3.0000."]


def test_its_figures_are_those_of_the_records(page: Path) -> None:
    cells = parsed(page).of("td")

    def row(name: str, count: int) -> list[str]:
        place = cells.index(name)
        return cells[place + 1 : place + 1 + count]

    assert row("held-out loss", 2) == ["3.0000", "0.2500"]
    assert row("held-out perplexity", 2) == ["20.09", "1.284"]
    assert row("exact match of 4 held-out answers", 2) == ["2 (50 %)", "2 (50 %)"]
    assert row("training", 1) == ["3 min 05 s, 100 tokens/s"]
    assert row("trained weights", 1) == ["4,884,480 of 139,400,064"]
    assert row("training rows", 1) == ["480"]
    assert row("held-out rows", 1) == ["50"]
    assert row("peak memory", 1) == ["2.00 GiB"]
    assert row("training time", 2) == ["unknown", "3 min 05 s"]
    assert row("SHA-256 of the training rows", 1) == ["cc"]
    assert "30 rows were left out or shortened (rejects.jsonl); the first 10:" in parsed(page).text


def test_the_command_that_repeats_the_run_has_what_was_set(page: Path) -> None:
    assert "fastft run recipes/quickstart.toml --fresh --set train.seed=7" in parsed(page).of("pre")


def test_only_what_differs_from_the_defaults_is_listed(page: Path) -> None:
    text = re.sub(r"<wbr>", "", page.read_text())

    for key in ("train.seed", "lora.lora_alpha", "model.id"):
        assert f"<td><code>{key}</code></td>" in text
    for key in ("lora.use_dora", "lora.r"):
        assert f"<td><code>{key}</code></td>" not in text, "not set, or set to the default"


def test_every_axis_has_its_unit(page: Path) -> None:
    labels = parsed(page).of("text")

    assert labels.count("optimizer step") == 5
    for unit in ("loss (nats a token)", "learning rate (no unit)", "norm before clipping (no unit)", "tokens/s", "GiB"):
        assert unit in labels


def test_a_run_that_did_not_finish_says_where_and_why(tmp_path: Path) -> None:
    run = make_run(tmp_path / "failed", steps=12, result=None)

    made = parsed(write_page(run, tmp_path / "page.html", state=("failed", HOSTILE[0])))

    assert made.of("h1") == [f"Failed after optimizer step 12 of 60: {HOSTILE[0]}"]
    assert made.strange == []
    assert not (run.path / "report.html").exists()


def test_a_run_that_only_began_has_a_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "begun", result=None)
    for path in (run.plan, run.metrics, run.rejects, run.path / "manifest.json"):
        path.unlink()

    assert "No optimizer step is logged yet." in parsed(write_page(run)).text


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "damaged")
    run.plan.write_text("{")

    with pytest.raises(MachineError, match=r"plan\.json: is damaged"):
        write_page(run)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_what_the_page_reads_is_in_every_plan(tmp_path: Path, recipe: Path) -> None:
    plan = golden_plan(recipe)
    write_json(tmp_path / "plan.json", plan.as_json())

    planned = read_record(tmp_path / "plan.json", Planned)

    assert planned is not None
    assert planned.schedule.optimizer_steps == plan.schedule.optimizer_steps
    assert planned.batching.active == plan.batching.active


def test_a_long_run_is_thinned_and_keeps_its_peaks() -> None:
    points = [(float(step), 9.0 if step == 77_777 else 1.0) for step in range(100_000)]

    made = thinned(points)

    assert len(made) <= 500
    assert (77_777.0, 9.0) in made
    assert len(line_chart("x", "step", "unit", [Line("x", points, "one")])) < 20_000


def test_the_running_mean_begins_at_the_first_point_and_skips_what_is_no_number() -> None:
    made = smoothed([(1, 4.0), (2, float("nan")), (3, 4.0), (4, 4.0)])

    assert made == [(1, 4.0), (3, pytest.approx(4.0)), (4, pytest.approx(4.0))]


@pytest.mark.parametrize("values", [[0.0], [5.0, 5.0], [1e-9, 2e-9], [-3.0, 1e9], [float("inf"), 2.0]])
def test_any_figures_make_a_chart_inside_its_frame(values: list[float]) -> None:
    chart = line_chart("x", "step", "unit", [Line("x", list(enumerate(values)), "one")])

    places = [float(y) for y in re.findall(r"[ML][\d.]+ (-?[\d.]+)", chart)]
    assert places
    assert all(24 <= y <= 190 for y in places)
