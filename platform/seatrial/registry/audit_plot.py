"""The picture in a trial's audit record: the interval as units came in, and the answers of each arm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from seatrial.experiments.trial import Decision, Look, Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"champion": "#5b6770", "challenger": "#0b6e99"}
VERDICTS = {
    "promote": "#1a7f4b",
    "roll_back": "#b3261e",
    "invalid": "#b3261e",
    "inconclusive": "#8a6d00",
    "superseded": "#5b6770",
}
_QUIET = "#c9ced3"


def draw(trial: Trial, decision: Decision, looks: Sequence[Look]) -> Figure:
    """A figure of two panels that share the number of units as their horizontal axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), dpi=130, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2.2, 1])
    _interval(above, trial, decision, looks)
    _exposures(below, looks)
    furthest = max([trial.policy["minimum_units"], *(look.units for look in looks)])
    below.set_xlim(left=0, right=furthest * 1.14)
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_QUIET)
        axes.tick_params(colors="#444b52", labelsize=9)
        axes.grid(axis="y", color="#eef0f2", linewidth=1)
        axes.set_axisbelow(True)
    figure.suptitle(
        f"{trial.id}: {decision.verdict.replace('_', ' ')}",
        x=0.01, ha="left", fontsize=14, fontweight="bold", color=VERDICTS[decision.verdict],
    )  # fmt: skip
    return figure


def _interval(axes: Axes, trial: Trial, decision: Decision, looks: Sequence[Look]) -> None:
    known = [look for look in looks if look.judgement.difference.is_defined]
    units = [look.units for look in known]
    seen = [look.judgement.difference for look in known]
    blue = COLOURS["challenger"]
    axes.axhline(0, color="#30363b", linewidth=1)
    if known:
        axes.fill_between(units, [c.low for c in seen], [c.high for c in seen], color=blue, alpha=0.16, lw=0)
        axes.plot(units, [c.estimate for c in seen], color=blue, linewidth=2, marker="o", markersize=3)
        last = seen[-1]
        axes.annotate(
            f"{last.estimate:+.3f}\n({last.low:+.3f}, {last.high:+.3f})",
            (units[-1], last.estimate), xytext=(8, 0), textcoords="offset points",
            va="center", fontsize=9, color=blue, annotation_clip=False,
        )  # fmt: skip
        # The first intervals are wider than anything worth seeing.
        reach = 3 * max(abs(last.low), abs(last.high), 1e-9)
        axes.set_ylim(-reach, reach)
    else:
        axes.text(0.5, 0.6, "no interval: too little evidence", transform=axes.transAxes, ha="center")
        axes.set_ylim(-1, 1)
    minimum = trial.policy["minimum_units"]
    axes.axvline(minimum, color=_QUIET, linestyle="--", linewidth=1)
    axes.annotate(
        f"minimum {minimum}", (minimum, 1), xycoords=("data", "axes fraction"),
        xytext=(4, -10), textcoords="offset points", fontsize=8, color="#7a838b",
    )  # fmt: skip
    level = round(100 * (1 - trial.policy["alpha"]), 2)
    axes.set_ylabel(f"{trial.policy['metric']['name']}: challenger − champion", fontsize=9)
    axes.set_title(
        f"version {trial.challenger} against {trial.champion}, {level:g}% confidence sequence. "
        f"{_short(decision.reason)}",
        loc="left", fontsize=9, color="#444b52",
    )  # fmt: skip


def _exposures(axes: Axes, looks: Sequence[Look]) -> None:
    units = [look.units for look in looks]
    for name, colour in COLOURS.items():
        counts = [look.exposures.get(name, 0) for look in looks]
        axes.plot(units, counts, color=colour, linewidth=2, label=name)
    axes.set_xlabel("units seen", fontsize=9)
    axes.set_ylabel("answers", fontsize=9)
    axes.set_ylim(bottom=0, top=None if looks else 1)
    axes.legend(frameon=False, fontsize=9, loc="upper left")


def _short(text: str, limit: int = 90) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
