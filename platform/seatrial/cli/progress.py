"""What people see of a running job."""

from __future__ import annotations

import re
from types import TracebackType
from typing import Self

from seatrial.cli.output import say
from seatrial.submission.events import JOB_MANAGER, Event

# The job's own progress lines: a bar says the same at a terminal.
STEP_LINE = re.compile(r"^step\s+\d+/\d+")


class PlainFollower:
    """Plain lines: the job's own, with its MLflow run's address before any of them."""

    def __init__(self) -> None:
        self._shown: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is open."""

    def hear(self, said: Event | str) -> None:
        """Take what the job says next."""
        if isinstance(said, Event):
            self._event(said)
        elif not JOB_MANAGER.search(said) and not self._is_run_again(said):
            self._line(said)

    def _event(self, event: Event) -> None:
        if event.name == "run":
            self._once(f"run        {event.text('url')}")
        else:
            self._progress(event)

    def _once(self, text: str) -> None:
        if text not in self._shown:
            self._shown.add(text)
            self._line(text)

    def _is_run_again(self, text: str) -> bool:
        """Whether the line for people repeats the address that the event gave."""
        words = text.split()
        return len(words) == 2 and words[0] == "run" and f"run        {words[1]}" in self._shown

    def _progress(self, event: Event) -> None:
        """The job's own lines say what the other events say."""

    def _line(self, text: str) -> None:
        say(text)


class TerminalFollower(PlainFollower):
    """The same with a progress bar at the bottom."""

    def __init__(self) -> None:
        super().__init__()
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
        )
        self._task = self._bar.add_task("waiting", total=None, figures="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def _progress(self, event: Event) -> None:
        if event.name == "progress":
            step, steps = event.number("step"), event.number("steps")
            self._bar.update(
                self._task, description="training", completed=step, total=steps, figures=figures(event)
            )
        elif event.name == "evaluated":
            self._bar.update(self._task, description="evaluated", figures=figures(event))

    def _line(self, text: str) -> None:
        if not STEP_LINE.match(text):
            from rich.text import Text

            self._bar.console.print(Text(text))


def figures(event: Event) -> str:
    """`loss 2.31  8,120 tok/s  ETA 3 min 5 s`, as far as the event says so."""
    from seatrial.submission.plan import duration

    loss, speed, eta_s = event.number("loss"), event.number("tokens_per_s"), event.number("eta_s")
    match, rouge = event.number("exact_match"), event.number("rouge_l")
    best, value = event.number("best"), event.number("value")
    parts = [
        "" if loss is None else f"loss {loss:.3f}",
        "" if best is None or value is None else f"best {value:.4g} (trial {best:.0f})",
        "" if speed is None else f"{speed:,.0f} tok/s",
        "" if eta_s is None else f"ETA {duration(eta_s)}",
        "" if match is None else f"exact match {match:.3f}",
        "" if rouge is None else f"ROUGE-L {rouge:.3f}",
    ]
    return "  ".join(part for part in parts if part)
