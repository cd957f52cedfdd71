"""Which checkpoints of a population stay: a trial that is late may copy what others have long passed."""

from __future__ import annotations

from seatrial.config.run import RunSection
from seatrial.config.search import SearchSection
from seatrial_jobs.checkpoints import checkpoint
from seatrial_jobs.events import say
from seatrial_jobs.search.journal import Journal, folder_of
from seatrial_jobs.search.population import slowest


class Tidier:
    """Deletes what `run.keep_checkpoints` would, once no trial is left that may copy it.

    Of other searches the workers do it, as in every job.
    """

    def __init__(self, journal: Journal, search: SearchSection, run: RunSection) -> None:
        self._journal, self._run, self._count = journal, run, search.count
        self._is_population = search.scheduler.type == "pbt"
        self._before = 0.0

    def __call__(self) -> None:
        """Tidy every trial's storage when the slowest one has come further."""
        before = slowest(self._journal.trials, self._count)
        if not self._is_population or before <= self._before:
            return
        try:
            for trial in self._journal.trials.values():
                for generation in range(1, trial.generation + 1):
                    self._tidy(folder_of(trial.number, generation), before)
        except OSError as error:
            say(f"checkpoints were not tidied away ({error}); the search goes on")
        else:
            self._before = before

    def _tidy(self, folder: str, before: float) -> None:
        run = self._run
        checkpoint.retain(
            self._journal.storage.below(folder),
            newest=run.keep_checkpoints,
            best=run.keep_best_checkpoints,
            before=before,
        )
