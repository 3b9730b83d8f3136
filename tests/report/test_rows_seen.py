"""What the page says about the rows of a run."""

from __future__ import annotations

import re
from pathlib import Path

from fastft.report.charts import HEIGHT, Line, Mark, bar_chart, line_chart
from fastft.report.page import write_page
from fastft.runs.metrics import MetricsFile, Warned
from fastft.runs.rows_seen import BINS, Account, LengthBin, MaskedRow, Part, RowsSeen, length_bins
from fastft.runs.state import Began, keep_begin, resumes_of
from tests.report.made_up import HOSTILE, make_run
from tests.report.test_page import parsed

SEEN = RowsSeen(
    (Account("3 training rows (messages), 30 tokens, 9 carry loss", ("1 training row is broken and left out",)),),
    (LengthBin(10, 2), LengthBin(20, 1)),
    (MaskedRow("rows.jsonl:1", 9, 3, (Part(f"user: {HOSTILE[0]}", False), Part("the answer", True))),),
)


def test_every_row_is_in_one_bin_and_the_longest_in_the_last() -> None:
    lengths = [1, 2, 2, 50, 99, 100]

    bins = length_bins(lengths)

    assert sum(each.rows for each in bins) == len(lengths)
    assert len(bins) <= BINS
    assert bins[-1].longest >= 100 > bins[-2].longest
    assert [each.longest for each in bins] == [5 * place for place in range(1, 21)]
    assert length_bins([]) == ()
    assert length_bins([7]) == (LengthBin(1, 0),) * 0 + tuple(LengthBin(n, int(n == 7)) for n in range(1, 8))


def test_the_page_shows_the_account_the_lengths_and_which_text_carries_loss(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    run.write(SEEN)

    page = parsed(write_page(run))

    assert page.strange == []
    assert "3 training rows (messages), 30 tokens, 9 carry loss." in page.of("p")
    assert "1 training row is broken and left out." in page.of("p")
    assert "the answer" in page.of("ins")
    assert f"user: {HOSTILE[0]}" in page.of("pre")
    assert {"tokens of a row", "rows"} <= set(page.of("text"))


def test_resumes_and_warnings_are_marked_in_the_curves(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", result=None)
    for number, step in ((1, 0), (2, 20), (10, 40)):
        (run.attempts / f"{number}").mkdir(parents=True)
        keep_begin(run, step)
    (run.checkpoints / "step-40").mkdir(parents=True)
    (run.checkpoints / "step-40" / "metrics.jsonl").write_bytes(run.metrics.read_bytes())
    MetricsFile(run.metrics).append(Warned(50, f"the loss rose {HOSTILE[0]}"))

    page = parsed(write_page(run))

    assert resumes_of(run) == [20, 40]
    assert (run.attempts / "10" / Began.FILE).is_file()
    assert page.strange == []
    assert {"resumed", "warning", "checkpoint", "evaluation", "epoch"} - set(page.of("text")) <= {"epoch"}
    assert f"After step 50: the loss rose {HOSTILE[0]}." in page.of("p")


def test_a_legend_of_many_names_takes_more_rows_and_the_chart_grows() -> None:
    lines = [Line(f"a long name of a curve {n}", [(0, 1), (1, 2)], "one") for n in range(4)]

    made = line_chart("x", "step", "unit", lines, [Mark(1, "mark", "epoch")])

    _, top, _, height = map(float, re.findall(r'viewBox="([^"]+)"', made)[0].split())
    assert top < 0
    assert height == HEIGHT - top
    rows = [float(y) for y in re.findall(r'y="([\d.]+)">(?:a long|mark)', made)]
    assert rows == [14, 14, 28, 28, 42], "two curves in a row of 400 units"


def test_bars_stand_on_the_axis_and_inside_the_frame() -> None:
    made = bar_chart("x", "tokens", "rows", [(10, 3), (20, 0), (30, 12)])

    bars = [
        tuple(map(float, each))
        for each in re.findall(r'y="([\d.]+)" class="bar" width="[\d.]+" height="([\d.]+)"', made)
    ]
    assert len(bars) == 3
    assert all(y >= 24 and abs(y + height - 190) < 0.2 for y, height in bars)
    assert bars[1][1] == 0
