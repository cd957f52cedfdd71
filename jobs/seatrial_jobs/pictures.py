"""The picture of a run: its losses and its learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curve = Sequence[tuple[int, float]]
TRAIN, HELDOUT, RATE = "#9ec5e8", "#d1495b", "#7a7a7a"
SMOOTH = "#1f5f99"


def loss_curves(title: str, train: Curve, heldout: Curve, rate: Curve) -> Figure:
    """Training loss as measured and smoothed, held-out loss as points, learning rate below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.6), dpi=130, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    if train:
        above.plot(*_xy(train), color=TRAIN, linewidth=1, label="train, each step")
        above.plot(*_xy(smoothed(train)), color=SMOOTH, linewidth=2, label="train, smoothed")
    if heldout:
        above.plot(*_xy(heldout), color=HELDOUT, linewidth=2, marker="o", markersize=5, label="held out")
        step, last = heldout[-1]
        above.annotate(
            f"{last:.3f}", (step, last), textcoords="offset points", xytext=(-6, 8), ha="right", color=HELDOUT
        )
    above.set_ylabel("loss (nats per token)")
    above.set_title(title, loc="left", fontsize=12, fontweight="bold")
    above.legend(frameon=False)
    if rate:
        below.fill_between(*_xy(rate), color=RATE, alpha=0.25, linewidth=0)
        below.plot(*_xy(rate), color=RATE, linewidth=1.2)
        below.set_ylim(bottom=0)
    below.set_ylabel("learning rate")
    below.set_xlabel("step")
    below.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.margins(x=0.01)
    return figure


def smoothed(curve: Curve) -> list[tuple[int, float]]:
    """Exponential mean over about a twentieth of the curve, started without a bias to zero."""
    weight = 1 - 1 / max(len(curve) / 20, 1)
    total = norm = 0.0
    result = []
    for step, value in curve:
        total = weight * total + (1 - weight) * value
        norm = weight * norm + (1 - weight)
        result.append((step, total / norm))
    return result


def _xy(curve: Curve) -> tuple[list[int], list[float]]:
    return [step for step, _ in curve], [value for _, value in curve]
