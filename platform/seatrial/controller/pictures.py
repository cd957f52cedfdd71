"""The pictures of a trial's page, as SVG: nothing to build, nothing from the internet."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC
from typing import TYPE_CHECKING

from seatrial.experiments.trial import Look, Trial
from seatrial.registry.audit_plot import ONE_AT_A_TIME, arm_colours
from seatrial.store.latency import Latency

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    Draw = Callable[[Axes], None]

QUIET, TEXT = "#d5d9dd", "#444b52"


def intervals(trial: Trial, looks: Sequence[Look]) -> bytes:
    """The difference from the champion and its interval, over time."""

    def draw(axes: Axes) -> None:
        axes.axhline(0, color="#30363b", linewidth=1)
        reach = 0.0
        for name, colour in list(arm_colours(trial).items())[1:]:
            found = [(look, _difference(look, trial, name)) for look in looks]
            known = [(look, each) for look, each in found if each is not None]
            if not known:
                continue
            times = [_time(look.at) for look, _ in known]
            lows, middles, highs = zip(*(each for _, each in known), strict=True)
            axes.fill_between(times, lows, highs, color=colour, alpha=0.15, lw=0)
            axes.plot(times, middles, color=colour, linewidth=2, marker="o", markersize=2.5, label=name)
            reach = max(reach, 3 * max(abs(lows[-1]), abs(highs[-1])))
        if reach:  # the first intervals are wider than anything worth seeing
            axes.set_ylim(-reach, reach)
        else:
            axes.text(0.5, 0.6, "no interval yet", transform=axes.transAxes, ha="center", color=TEXT)
            axes.set_ylim(-1, 1)
        axes.set_ylabel(f"{trial.policy['metric']['name']}: difference")

    return _svg(draw)


def exposures(trial: Trial, looks: Sequence[Look]) -> bytes:
    """Answers of each arm so far, over time."""

    def draw(axes: Axes) -> None:
        times = [_time(trial.opened_at), *(_time(look.at) for look in looks)]
        for name, colour in arm_colours(trial).items():
            counts = [0, *(look.exposures.get(name, 0) for look in looks)]
            axes.plot(times, counts, color=colour, linewidth=2, label=name)
        axes.set_ylim(bottom=0, top=None if looks else 1)
        axes.set_ylabel("answers")

    return _svg(draw)


def latencies(trial: Trial, found: Mapping[str, Latency]) -> bytes:
    """How long the last answers of each arm took: the share that was over within so many seconds."""

    def draw(axes: Axes) -> None:
        longest = 0.0
        for name, colour in arm_colours(trial).items():
            seconds = sorted(found[name].latency_s) if name in found else []
            if not seconds:
                continue
            shares = [(index + 1) / len(seconds) for index in range(len(seconds))]
            axes.step(seconds, shares, where="post", color=colour, linewidth=2, label=name)
            longest = max(longest, seconds[min(len(seconds) - 1, int(len(seconds) * 0.99))])
        axes.axhline(0.95, color=QUIET, linestyle="--", linewidth=1)
        axes.set_xlim(left=0, right=longest * 1.1 or 1)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("seconds to the end of the answer")
        axes.set_ylabel("share of answers")

    return _svg(draw, is_dated=False)


def _difference(look: Look, trial: Trial, name: str) -> tuple[float, float, float] | None:
    judged = look.judgement.arms.get(name)
    if judged is None and len(trial.challengers) == 1:
        found = look.judgement.difference
    elif judged is None:
        return None
    else:
        found = judged.difference
    return (found.low, found.estimate, found.high) if found.is_defined else None


def _svg(draw: Draw, *, is_dated: bool = True) -> bytes:
    with ONE_AT_A_TIME:
        import matplotlib as mpl
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
        from matplotlib.figure import Figure

        with mpl.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}):
            figure = Figure(figsize=(7, 2.8), layout="constrained")
            axes = figure.subplots()
            draw(axes)
            if is_dated:
                locator = AutoDateLocator(tz=UTC)
                axes.xaxis.set_major_locator(locator)
                axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=UTC))
            axes.spines[["top", "right"]].set_visible(False)
            axes.spines[["left", "bottom"]].set_color(QUIET)
            axes.tick_params(colors=TEXT)
            axes.grid(axis="y", color="#eef0f2", linewidth=1)
            axes.set_axisbelow(True)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(frameon=False, loc="upper left")
            out = io.BytesIO()
            figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return out.getvalue()


def _time(seconds: float) -> float:
    return seconds / 86_400.0  # matplotlib counts days since 1970
