"""The picture in a trial's audit record: intervals as units came in, answers, sample ratio, guardrails."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from seatrial.experiments.judgement import GuardrailResult
from seatrial.experiments.policy import TrialPolicy
from seatrial.experiments.sequential import Comparison
from seatrial.experiments.trial import Decision, Look, Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#6b7780", "#0b6e99", "#c4561a", "#6a4c93", "#2d7d46")
GOOD, BAD = "#1a7f4b", "#b3261e"
VERDICTS = {
    "promote": GOOD,
    "roll_back": BAD,
    "invalid": BAD,
    "inconclusive": "#8a6d00",
    "superseded": "#5b6770",
}
ONE_AT_A_TIME = threading.Lock()  # matplotlib's settings, fonts and text layout are not safe in two threads
_QUIET, _TEXT = "#c9ced3", "#444b52"
_LEAST_P = 1e-6  # smaller ones are drawn here
_ROW = 0.24  # inches of one guardrail's line


def arm_colours(trial: Trial) -> dict[str, str]:
    """Arm → colour, the champion's grey; the pages have the same."""
    return {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(trial.arms)}


def draw(trial: Trial, decision: Decision, looks: Sequence[Look]) -> Figure:
    """Three panels over the number of units, and one line for each guardrail of each challenger."""
    from matplotlib.figure import Figure

    rails = _rails(trial, decision)
    height = 7.2 + _ROW * (len(rails) + 1)
    figure = Figure(figsize=(9, height), dpi=130, layout="constrained")
    *panels, last = figure.subplots(4, 1, height_ratios=[3.3, 1.5, 1.2, _ROW * (len(rails) + 2)])
    above, middle, below = panels
    colours = arm_colours(trial)
    _interval(above, trial, decision, looks, colours)
    _exposures(middle, looks, colours)
    _sample_ratio(below, trial, looks)
    _guardrails(last, rails)
    furthest = max([trial.policy["minimum_units"], *(look.units for look in looks)])
    for axes in panels:
        axes.set_xlim(left=0, right=furthest * 1.14)
        axes.tick_params(labelbottom=axes is below)
        _quiet(axes)
    figure.suptitle(
        f"{trial.id}: {decision.verdict.replace('_', ' ')}",
        x=0.01, ha="left", fontsize=14, fontweight="bold", color=VERDICTS[decision.verdict],
    )  # fmt: skip
    return figure


def _quiet(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_QUIET)
    axes.tick_params(colors=_TEXT, labelsize=9)
    axes.grid(axis="y", color="#eef0f2", linewidth=1)
    axes.set_axisbelow(True)


def _interval(
    axes: Axes, trial: Trial, decision: Decision, looks: Sequence[Look], colours: Mapping[str, str]
) -> None:
    axes.axhline(0, color="#30363b", linewidth=1)
    reach = 0.0
    for name in trial.challengers:
        seen = [(look.units, found) for look in looks if (found := _difference(look, trial, name))]
        if seen:
            reach = max(reach, _band(axes, name, seen, colours[name]))
    if reach:  # the first intervals are wider than anything worth seeing
        axes.set_ylim(-reach, reach)
    else:
        axes.text(0.5, 0.6, "no interval: too little evidence", transform=axes.transAxes, ha="center")
        axes.set_ylim(-1, 1)
    if len(trial.challengers) > 1 and reach:
        axes.legend(frameon=False, fontsize=9, loc="lower right")
    minimum = trial.policy["minimum_units"]
    axes.axvline(minimum, color=_QUIET, linestyle="--", linewidth=1)
    axes.annotate(
        f"minimum {minimum}", (minimum, 1), xycoords=("data", "axes fraction"),
        xytext=(4, -10), textcoords="offset points", fontsize=8, color="#7a838b",
    )  # fmt: skip
    interval = TrialPolicy.from_json(trial.policy).interval(len(trial.challengers))
    several = "s" if len(trial.challengers) > 1 else ""
    against = f"version{several} {' and '.join(trial.challengers.values())} against {trial.champion}"
    axes.set_ylabel(f"{trial.policy['metric']['name']}: difference", fontsize=9)
    axes.set_title(
        f"{against}, {interval}. {_short(decision.reason)}",
        loc="left", fontsize=9, color=_TEXT, parse_math=False,  # two dollar signs make no formula
    )  # fmt: skip


def _band(axes: Axes, name: str, seen: Sequence[tuple[int, Comparison]], colour: str) -> float:
    """One challenger's interval; how far the axis should reach for it."""
    units, found = zip(*seen, strict=True)
    axes.fill_between(units, [c.low for c in found], [c.high for c in found], color=colour, alpha=0.16, lw=0)
    estimates = [c.estimate for c in found]
    axes.plot(units, estimates, color=colour, linewidth=2, marker="o", markersize=3, label=name)
    last = found[-1]
    axes.annotate(
        f"{last.estimate:+.3f}\n({last.low:+.3f}, {last.high:+.3f})",
        (units[-1], last.estimate), xytext=(8, 0), textcoords="offset points",
        va="center", fontsize=9, color=colour, annotation_clip=False,
        bbox={"facecolor": "white", "alpha": 0.8, "lw": 0, "pad": 1},
    )  # fmt: skip
    return float(3 * max(abs(last.low), abs(last.high), 1e-9))


def _difference(look: Look, trial: Trial, name: str) -> Comparison | None:
    """A challenger's difference at a look; looks of one challenger may not name it."""
    arm = look.judgement.arms.get(name)
    found = arm.difference if arm else look.judgement.difference
    is_known = found.is_defined and (arm is not None or len(trial.challengers) == 1)
    return found if is_known else None


def _exposures(axes: Axes, looks: Sequence[Look], colours: Mapping[str, str]) -> None:
    for name, colour in colours.items():
        seen = [(look.units, look.exposures[name]) for look in looks if name in look.exposures]
        axes.plot(*(zip(*seen, strict=True) if seen else ((), ())), color=colour, linewidth=2, label=name)
    axes.set_ylabel("answers", fontsize=9)
    axes.set_ylim(bottom=0, top=None if looks else 1)
    axes.legend(frameon=False, fontsize=9, loc="upper left")


def _sample_ratio(axes: Axes, trial: Trial, looks: Sequence[Look]) -> None:
    seen = [(look.units, max(_LEAST_P, p)) for look in looks if math.isfinite(p := look.judgement.srm_p)]
    axes.plot(*(zip(*seen, strict=True) if seen else ((), ())), color=COLOURS[0], linewidth=2)
    limit = TrialPolicy.from_json(trial.policy).ratio_alpha
    axes.axhline(limit, color=BAD, linestyle="--", linewidth=1)
    axes.annotate(
        f"invalid at {limit:g}", (1, limit), xycoords=("axes fraction", "data"),
        xytext=(0, 3), textcoords="offset points", ha="right", fontsize=8, color=BAD,
    )  # fmt: skip
    axes.set_yscale("log")
    axes.set_ylim(_LEAST_P, 2)
    axes.set_yticks([1e-6, 1e-3, 1])
    axes.minorticks_off()
    axes.set_ylabel("sample ratio p", fontsize=9)
    axes.set_xlabel("units seen", fontsize=9)


def _rails(trial: Trial, decision: Decision) -> list[tuple[str, GuardrailResult]]:
    arms = decision.judgement.arms
    return [(name, each) for name in trial.challengers if name in arms for each in arms[name].guardrails]


def _guardrails(axes: Axes, rails: Sequence[tuple[str, GuardrailResult]]) -> None:
    """A table without lines: what each guardrail saw when the trial ended."""
    axes.axis("off")
    axes.set_xlim(0, 1)
    axes.set_ylim(len(rails) + 1.5, -0.5)
    places = (0.0, 0.2, 0.5, 0.63, 0.76, 0.89)
    rows = [("arm", "guardrail", "value", "limit", "p", ""), *(_line(*each) for each in rails)]
    for number, row in enumerate(rows):
        is_broken = number > 0 and rails[number - 1][1].breached
        colour = BAD if is_broken else _TEXT if number else "#7a838b"
        for place, cell in zip(places, row, strict=True):
            axes.text(place, number, cell, fontsize=9 if number else 8, color=colour, va="center")
    if not rails:
        axes.text(0, 1, "no guardrail was looked at", fontsize=9, color=_TEXT, va="center")


def _line(arm: str, rail: GuardrailResult) -> tuple[str, ...]:
    shown = ("-" if math.isnan(value) else f"{value:.4g}" for value in (rail.value, rail.limit, rail.p))
    state = "broken" if rail.breached else "says nothing yet" if math.isnan(rail.p) else "kept"
    return (arm, rail.name, *shown, state)


def _short(text: str, limit: int = 70) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
