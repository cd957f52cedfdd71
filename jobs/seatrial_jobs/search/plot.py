"""The picture of a search: every trial's measurements, and what each searched field did to the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from seatrial.config.search import Choice, Domain, LogUniform
from seatrial_jobs.search.journal import Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BEST, OTHER, STOPPED, COPY = "#d1495b", "#1f5f99", "#b8c4d0", "#2e8b57"
COLUMNS = 3
"""Fields side by side."""


def trials_picture(
    title: str, trials: Sequence[Trial], winner: int | None, space: Mapping[str, Domain], metric: str
) -> Figure:
    """Measurements over steps above, the last one over each searched field below; the winner in red."""
    from matplotlib.figure import Figure

    rows = -(-len(space) // COLUMNS)
    figure = Figure(figsize=(10, 4.2 + 2.6 * rows), dpi=130, layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=[4.2, 2.6 * rows])
    curves = above.subplots()
    _curves(curves, trials, winner)
    curves.set_ylabel(metric)
    curves.set_xlabel("step")
    curves.set_title(title, loc="left", fontsize=12, fontweight="bold")
    places = below.subplots(rows, min(len(space), COLUMNS), squeeze=False).flatten()
    for axes, (path, domain) in zip(places, space.items(), strict=False):
        _scatter(axes, path, domain, trials, winner)
        axes.set_ylabel(metric)
    for axes in places[len(space) :]:
        axes.set_visible(False)
    for axes in (curves, *places):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
    return figure


def _colour(trial: Trial, winner: int | None) -> str:
    if trial.number == winner:
        return BEST
    return OTHER if trial.state == "finished" else STOPPED


def _curves(axes: Axes, trials: Sequence[Trial], winner: int | None) -> None:
    for trial in sorted(trials, key=lambda each: each.number == winner):
        colour = _colour(trial, winner)
        for _, reports in groupby(trial.reports, key=lambda report: report.generation):
            points = [(report.step, report.value) for report in reports]
            axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.6, marker="o", markersize=3.5)
        if trial.reports:
            last = trial.reports[-1]
            axes.annotate(
                str(trial.number), (last.step, last.value), textcoords="offset points", xytext=(5, -3),
                fontsize=8, color=colour,
            )  # fmt: skip
    _copies(axes, trials)
    for label, colour in (("best", BEST), ("finished", OTHER), ("stopped or failed", STOPPED)):
        axes.plot([], [], color=colour, marker="o", markersize=3.5, label=label)
    axes.legend(frameon=False, fontsize=8)


def _copies(axes: Axes, trials: Sequence[Trial]) -> None:
    """Where a trial went on from another's checkpoint."""
    by_number = {trial.number: trial for trial in trials}
    points = []
    for origin in (g.origin for trial in trials for g in trial.generations if g.origin is not None):
        donor = by_number[origin.trial]
        points += [(r.step, r.value) for r in donor.reports if r.checkpoint == origin.checkpoint][:1]
    if points:
        axes.plot(
            *zip(*points, strict=True), linestyle="", marker="D", markersize=7, markerfacecolor="none",
            markeredgecolor=COPY, label="copied from",
        )  # fmt: skip


def _scatter(axes: Axes, path: str, domain: Domain, trials: Sequence[Trial], winner: int | None) -> None:
    measured = [trial for trial in trials if trial.value is not None]
    xs = [_place(trial.values[path], domain) for trial in measured]
    ys = [trial.value or 0.0 for trial in measured]
    axes.scatter(xs, ys, c=[_colour(trial, winner) for trial in measured], s=34, zorder=3)
    for trial, x, y in zip(measured, xs, ys, strict=True):
        axes.annotate(str(trial.number), (x, y), textcoords="offset points", xytext=(5, 3), fontsize=8)
    axes.set_xlabel(path)
    axes.margins(x=0.15)
    if isinstance(domain, LogUniform):
        axes.set_xscale("log")
    if isinstance(domain, Choice):
        axes.set_xticks(range(len(domain.values)), [str(value) for value in domain.values])


def _place(value: Any, domain: Domain) -> float:
    """Where on the axis; listed values stand side by side."""
    if isinstance(domain, Choice):
        return float([str(each) for each in domain.values].index(str(value)))
    return float(value)
