"""report.html: one file about one run, which loads nothing, runs nothing, and can be printed and sent."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastft.files.atomic import write_text
from fastft.files.records import parse_object, read_bytes, read_record
from fastft.planning.learning_rates import RangeTest
from fastft.recipe.reference import fields, reference, toml
from fastft.report.answers import answers_section, cut
from fastft.report.charts import number
from fastft.report.classes import classes_section
from fastft.report.curves import NO_EVENTS, RunEvents, charts
from fastft.report.figures import METHODS, change_of, value_of, verdict_of
from fastft.report.html import Markup, element, joined, key, table
from fastft.report.rows_seen import account_part, lengths_part, masks_part
from fastft.report.style import STYLE
from fastft.report.units import duration, size
from fastft.runs.checkpoints import checkpoints
from fastft.runs.directory import RunDir, Settings
from fastft.runs.history import read_history
from fastft.runs.manifest import Manifest
from fastft.runs.measured import compared
from fastft.runs.metrics import History
from fastft.runs.planned import Planned
from fastft.runs.result import Result
from fastft.runs.rows_seen import RowsSeen
from fastft.runs.state import State, resumes_of, state_of
from fastft.runs.verdict import judge, match_difference

if TYPE_CHECKING:
    from fastft.exports.record import RecordedArtefact

FILE = "report.html"
# Rows of rejects.jsonl on the page, and letters of the recipe.
REJECTS_SHOWN = 10
RECIPE_LONGEST = 20_000
# A browser that is given this loads and runs nothing, whatever a text of the data holds.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


@dataclass(frozen=True)
class Records:
    """All that the page shows, as it is on disk; None where a run did not come that far."""

    run: RunDir
    state: State
    why: str
    settings: Settings | None
    planned: Planned | None
    manifest: Manifest | None
    history: History
    result: Result | None
    rows: RowsSeen | None = None
    events: RunEvents = NO_EVENTS
    range_test: RangeTest | None = None


def write_page(run: RunDir, out: Path | None = None, *, state: tuple[State, str] | None = None) -> Path:
    """Write the report of a run to `out`, by default into its folder; returns the path.

    `state`: what `state_of` cannot see yet, because this process still runs in the folder.

    Raises:
        MachineError: a record of the run is damaged.
        OSError: the file cannot be written.
    """
    known = state or state_of(run)
    read = run.read
    history = read_history(run)
    planned = read_record(run.plan, Planned)
    settings, manifest, result, rows = read(Settings), read(Manifest), run.result, read(RowsSeen)
    events = RunEvents(tuple(resumes_of(run)), tuple(sorted(step for step, _ in checkpoints(run))))
    records = Records(run, *known, settings, planned, manifest, history, result, rows, events, read(RangeTest))
    path = out or run.path / FILE
    write_text(path, page(records))
    return path


def page(records: Records) -> str:
    """The page as HTML."""
    name = records.run.path.resolve().name
    sections = {
        "Figures": _figures(records),
        "Recipe": _recipe(records),
        "Curves": charts(records.history, records.planned, records.events, records.range_test),
        "Data": _data(records),
        "Before and after": _before_and_after(records.result),
        "Forecast and actual": _forecast(records.result),
        "Exports": _exports(records),
        "Environment": _environment(records.manifest),
        "Run it again": _again(records),
    }
    head = element(
        "head",
        Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
        element("title", f"{name}: fastft"),
        element("style", Markup(STYLE)),
    )
    body = element(
        "body",
        *_verdict(records, name),
        *(element("section", element("h2", title), content) for title, content in sections.items()),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _before_and_after(result: Result | None) -> Markup:
    if result is not None and result.classification is not None:
        return classes_section(result.classification)
    return answers_section(None if result is None else result.exact_match)


def _verdict(records: Records, name: str) -> tuple[Markup, ...]:
    """The first line, and what the run is."""
    if records.result is not None:
        verdict = judge(records.result)
        style, text = verdict.word.replace(" ", "-"), f"{verdict}."
    else:
        steps = records.history.steps
        done = f" after optimizer step {steps[-1].step} of {steps[-1].total_steps}" if steps else ""
        style, text = records.state, f"{records.state.capitalize()}{done}" + (f": {records.why}" * bool(records.why))
    planned, parts = records.planned, [f"run {name}"]
    if planned is not None:
        parts += [f"base model {planned.base_model}", f"{planned.engine} on {planned.device}"]
    if records.result is not None:
        parts.append(f"finished {records.result.finished}")
    return element("h1", text, class_=f"verdict {style}"), element("p", " · ".join(parts), class_="soft")


def _figures(records: Records) -> Markup:
    """What was measured before and after training, and what the run took."""
    result = records.result
    if result is None:
        steps = records.history.steps
        took = duration(sum(step.seconds for step in steps))
        return element("p", f"The run did not finish: {len(steps)} logged steps, {took} in optimizer steps.")
    match, measured = result.exact_match, compared(result)
    rows = [
        (each.measure.title, value_of(each, each.before), value_of(each, each.after), change_of(each), verdict_of(each))
        for each in measured
    ]
    if match is not None and all(each.measure.name != "exact_match" for each in measured):
        before = "" if match.before is None else _share(match.before, match.rows)
        rows.append((f"exact match of {match.rows} held-out answers", before, _share(match.after, match.rows), "", ""))
    rate = result.train_tokens_seen / result.train_seconds if result.train_seconds else 0.0
    rows += [
        ("training loss, mean of all steps", "", _loss(result.train_loss), "", ""),
        ("optimizer steps", "", f"{result.steps:,}", "", ""),
        ("training", "", f"{duration(result.train_seconds)}, {rate:,.0f} tokens/s", "", ""),
        ("whole run", "", duration(result.total_seconds), "", ""),
        ("peak memory", "", size(result.peak_memory_bytes), "", ""),
        ("trained weights", "", f"{result.trained_weights:,} of {result.weights:,}", "", ""),
    ]
    parts = [table(("", "before", "after", "change, 95 % interval", ""), rows, frozenset({1, 2, 3}))]
    if measured:
        text = (
            "Intervals are paired: of the same held-out rows (for the loss, micro-batches) before and after training."
            f" {METHODS} General questions are the regression set of fastft: 100 short ones."
        )
        parts.append(element("p", text, class_="soft"))
    if result.general_missing:
        parts.append(element("p", f"The general questions are not counted: {result.general_missing}."))
    difference = match_difference(match)
    if difference is not None:
        parts.append(
            element(
                "p",
                f"Of {difference.rows} answers {difference.gained} became right and {difference.lost} became wrong.",
                class_="soft",
            )
        )
    return joined(*parts)


def _recipe(records: Records) -> Markup:
    """What differs from the defaults, what fastft decided itself, and the recipe."""
    settings, planned = records.settings, records.planned
    parts = []
    if settings is not None:
        rows = []
        for name, one in settings.settings.items():
            value, default = toml(one.value), _default(name)
            if one.origin != "default" and value != default:
                rows.append((key(name), element("code", cut(value)), one.origin, element("code", default)))
        parts.append(table(("key", "value", "from", "default"), rows))
    if planned is not None:
        parts += [element("p", f"Caution: {each.says}: {each.reason}.") for each in planned.warnings]
    parts += [element("p", f"After step {each.step}: {each.text}.") for each in records.history.warnings]
    if planned is not None:
        chosen = [(key(name), element("code", toml(each.value)), each.reason) for name, each in planned.choices.items()]
        parts.append(_details("What fastft decided, and why", table(("key", "value", "reason"), chosen)))
    parts.append(_details("The whole recipe", element("pre", cut(records.run.recipe_text(), RECIPE_LONGEST))))
    return joined(*parts)


def _default(name: str) -> str:
    return reference(name).default if name in fields() else "no key of this fastft"


def _data(records: Records) -> Markup:
    """Where the rows come from, how many there are, how long, and which are left out."""
    planned, settings = records.planned, records.settings
    rows: list[tuple[str, ...]] = []
    for name in ("data.train", "data.sources", "data.eval", "data.eval_fraction"):
        value = None if settings is None or name not in settings.settings else settings.settings[name].value
        if value:
            rows.append((name, cut(value if isinstance(value, str) else toml(value))))
    if records.manifest is not None:
        rows.append(("format", records.manifest.data.format))
    if planned is not None:
        schedule, lengths = planned.schedule, planned.batching.lengths
        rows.append(("training rows", _count(schedule.train_examples)))
        rows.append(("held-out rows", _count(schedule.eval_examples)))
        if lengths is not None:
            rows.append(("tokens of an epoch", f"{lengths.tokens:,}"))
            spread = f"mean {lengths.mean:,}, median {lengths.median:,}, 90th percentile {lengths.p90:,}"
            rows.append(("tokens of a row", f"{spread}, longest {lengths.longest:,}"))
        rows.append(("micro-batches", f"{planned.batching.active}: {planned.batching.active_because}"))
        if planned.padding is not None:
            rows.append(("padding", f"{100 * planned.padding:.1f} % of the computed tokens"))
    parts = [table(("", ""), rows)]
    if records.rows is not None:
        parts += [account_part(records.rows), lengths_part(records.rows)]
    if planned is not None and planned.batching.table:
        parts.append(_padding(planned))
    parts.append(_rejects(records.run))
    if records.rows is not None:
        parts.append(masks_part(records.rows))
    return joined(*parts)


def _padding(planned: Planned) -> Markup:
    """What each way of making micro-batches would pad, with the one that is used."""
    modes = planned.batching
    batch = planned.schedule.per_device_train_batch_size
    rows = [
        (
            f"{row.mode}{' (used)' if (row.mode, row.batch) == (modes.active, batch) else ''}",
            f"{row.batch}",
            f"{100 * row.padding_share:.1f} %",
        )
        for row in modes.table
    ]
    made = table(("micro-batches", "rows", "padding among computed tokens"), rows, frozenset({1, 2}))
    return _details("Padding with other batches, sorted, and packed", made)


def _rejects(run: RunDir) -> Markup:
    """How many rows are left out or shortened, and the first of them."""
    texts = (read_bytes(run.rejects) or b"").splitlines()
    if not texts:
        return element("p", "No row was left out or shortened.")
    numbered = list(enumerate(texts, start=1))[:REJECTS_SHOWN]
    lines = [parse_object(Path(f"{run.rejects}:{number}"), text) for number, text in numbered]
    count = len(texts)
    shown = [(f"{line.get('split')}", f"{line.get('file')}:{line.get('line')}", _reason(line)) for line in lines]
    first = f"; the first {len(lines)}" if count > len(lines) else ""
    text = f"{count:,} rows were left out or shortened (rejects.jsonl){first}:"
    return joined(element("p", text), table(("rows", "place", "reason"), shown))


def _reason(line: Mapping[str, object]) -> str:
    return cut(f"{line.get('reason', '')}", 300)


def _forecast(result: Result | None) -> Markup:
    """Each figure of the plan beside what was measured."""
    if result is None:
        return element("p", "Figures are compared when a run has finished.")
    rows = []
    for name, score in result.forecast.items():
        words = name.removesuffix("_bytes").removesuffix("_seconds").replace("train", "training time").replace("_", " ")
        show = size if name.endswith("_bytes") else duration if name.endswith("_seconds") else number
        forecast = "unknown" if score.forecast is None else show(score.forecast)
        rows.append((words, forecast, show(score.actual), _off_by(score.error)))
    return table(("", "forecast", "actual", "off by"), rows, frozenset({1, 2, 3}))


def _off_by(error: float | None) -> str:
    if error is None or error == 0:
        return "" if error is None else "exact"
    return "under 1 %" if abs(error) < 0.005 else f"{100 * error:+.0f} %"


def _exports(records: Records) -> Markup:
    """The weights on disk, with the figures of their comparison with the trained model."""
    result, parts = records.result, []
    if result is not None:
        parts.append(element("p", "Trained weights: ", element("code", result.weights_folder)))
    if records.run.exports.is_dir():
        from fastft.exports.record import read_exports  # numpy, which most runs can do without

        parts += [_export(each) for each in read_exports(records.run.exports).artefacts]
    if len(parts) < 2:
        parts.append(element("p", "No merged or GGUF weights were exported."))
    return joined(*parts)


def _export(made: RecordedArtefact) -> Markup:
    rows = [("file", f"{made.path}, {size(made.size_bytes)}")]
    gate = made.parity
    if gate is None:
        rows.append(("gate", "not compared with the trained model"))
    else:
        agreement = f"{100 * gate.agreement:.1f} % of {gate.positions:,}, {100 * gate.bar:.0f} % needed"
        rows += [
            ("gate", "passed" if gate.passed else "FAILED: " + "; ".join(gate.reasons)),
            ("same next token as the trained model", agreement),
            ("mean KL divergence from it", f"{gate.mean_kl:.2e} nats a token"),
        ]
    rows += [("note", note) for note in made.notes]
    return joined(element("h3", made.kind), table(("", ""), rows))


def _environment(manifest: Manifest | None) -> Markup:
    """What the run was made with, and hashes that say whether another one is the same."""
    if manifest is None:
        return element("p", "The run ended before its manifest was written.")
    base, data = manifest.base_model, manifest.data
    rows = [
        ("fastft", manifest.fastft),
        ("Python", manifest.python),
        ("device", manifest.device),
        ("engine", manifest.engine),
        ("seed", f"{manifest.seed}"),
        ("base model", base.id + (f" at {base.revision}" if base.revision else "")),
        ("fingerprint of its weights", base.fingerprint or "none: in 4 bits"),
        ("SHA-256 of the training rows", data.train_sha256),
        ("SHA-256 of the held-out rows", data.eval_sha256 or "none"),
    ]
    if manifest.chat_template is not None:
        rows.append(("chat template", f"{manifest.chat_template.name}, SHA-256 {manifest.chat_template.sha256}"))
    rows += [("accepted change", change) for change in manifest.accepted_drift]
    packages = table(("package", "version"), list(manifest.packages.items()))
    return joined(table(("", ""), rows), _details("Versions of the libraries", packages))


def _again(records: Records) -> Markup:
    """The command that repeats the run."""
    recipe = "recipe.toml" if records.planned is None else records.planned.recipe
    words = ["fastft", "run", recipe, "--fresh"]
    if records.settings is not None:
        for name, one in records.settings.settings.items():
            if one.origin == "--set":
                words += ["--set", f"{name}={toml(one.value)}"]
    same = "from the folder where it was started, with the recipe and the data as they were then"
    return joined(element("pre", shlex.join(words)), element("p", f"Run it {same}.", class_="soft"))


def _details(summary: str, content: Markup) -> Markup:
    return element("details", element("summary", summary), content)


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _share(count: int, rows: int) -> str:
    return f"{count} ({100 * count / rows:.0f} %)"


def _count(value: int | None) -> str:
    return "none" if value is None else f"{value:,}"
