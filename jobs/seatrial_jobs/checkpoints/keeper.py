"""Saving and restoring: snapshots of the training state, written while training goes on, and put back."""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from seatrial.registry import runs
from seatrial_jobs import ledger
from seatrial_jobs.batches import Share
from seatrial_jobs.checkpoints import checkpoint, generators
from seatrial_jobs.checkpoints.writer import Writer, patiently
from seatrial_jobs.loop import Schedule
from seatrial_jobs.recorder import Recorder, point
from seatrial_jobs.spec import HopelessError, Spec

PATIENCE_S = 600.0
"""How long training stands still for a storage that does not answer, where it must wait for it."""
WORD_TIMEOUT_S = 60.0
"""How long the first worker waits for the others' parts before it looks again whether all is well."""


@dataclass(frozen=True)
class Sign:
    """What each worker tells the others before a checkpoint."""

    generators: dict[str, Any]
    problem: Exception | None
    """Why no worker can go on."""
    struggling: bool
    """Whether storage does not take the checkpoint before this one."""


class Keeper:
    """Keeps a job's checkpoints; all workers call it at the same steps."""

    def __init__(
        self,
        spec: Spec,
        share: Share,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        recorder: Recorder | None,
        *,
        tokens_digest: str = "",
    ) -> None:
        self.spec, self.share, self.schedule = spec, share, schedule
        self.model, self.optimizer, self.recorder = model, optimizer, recorder
        self.tokens_digest = tokens_digest
        self._writer = Writer()
        self._staging = checkpoint.Staging(share.device)

    def restore(self) -> checkpoint.State | None:
        """Put the newest checkpoint that holds in place, if there is one.

        Raises:
            HopelessError: it belongs to another schedule or other tokens.
        """
        state = self._load(every=1)
        if self.share.rank == 0:
            patiently(lambda: checkpoint.tidy(self.spec.storage), PATIENCE_S)
        if state is None:
            return None
        if self.share.rank < len(state.generators):
            generators.restore(state.generators[self.share.rank])
        if self.recorder is not None:
            self.recorder.add(runs.Point(**value) for value in state.unlogged)
        if state.left is not None:
            self._tag(state.left, str(state.step))
        self._tag("seatrial.resumed_at", str(state.step))
        return state

    def go_back(self) -> checkpoint.State | None:
        """Put weights and optimizer back as of the last regular checkpoint; ``None`` when there is none."""
        self._agree(self._ended())
        return self._load(every=self.spec.recipe.run.checkpoint_every or self.schedule.steps)

    def save(
        self,
        step: int,
        *,
        heldout: float | None = None,
        guard: dict[str, Any] | None = None,
        left: str | None = None,
        wait: bool = False,
    ) -> None:
        """Take a snapshot and write it; with ``wait``, return when it is in storage.

        ``heldout``, ``guard`` and ``left`` are kept with it, as :class:`checkpoint.State` has them. While
        storage refuses the checkpoint before this one, training goes on without one.

        Raises:
            HopelessError: on every worker, when the weights of any are not finite.
            Exception: on every worker, what made writing impossible on any.
        """
        began = time.perf_counter()
        signs = self.share.exchange(Sign(generators.states(), self._problem(step), self._writer.struggling))
        _raise_first(sign.problem for sign in signs)
        if wait or not any(sign.struggling for sign in signs):
            snapshot = checkpoint.look(self.model, self.optimizer)
            if self.share.rank == 0 or snapshot.sharded:
                _raise_first([self._ended()])
                state = self._state(step, signs, heldout=heldout, guard=guard, left=left)
                self._writer.start(self._write(snapshot, state))
            if wait:
                self._agree(self._ended())
        self._measure("checkpoint/blocked_s", step, began)

    def _state(self, step: int, signs: list[Sign], **known: Any) -> checkpoint.State:
        return checkpoint.State(
            step,
            vars(self.schedule),
            generators=[sign.generators for sign in signs],
            unlogged=self.recorder.pending() if self.recorder is not None else [],
            tokens_digest=self.tokens_digest,
            **known,
        )

    def _write(self, snapshot: checkpoint.Snapshot, state: checkpoint.State) -> Callable[[], None]:
        """What the thread does, again where storage fails; all of it once the marker is there is done."""
        began, run = time.perf_counter(), self.spec.recipe.run
        copied, name = self._staging.copy(snapshot), checkpoint.name_of(state.step)
        if snapshot.sharded:
            name = self.share.exchange(name)[0]
        marked = False

        def write() -> None:
            nonlocal marked
            if not marked:
                self._put(copied, state, name)
                self._measure("checkpoint/write_s", state.step, began)
                marked = True
            if self.share.rank == 0 and self.spec.tidies:
                checkpoint.retain(
                    self.spec.storage,
                    newest=run.keep_checkpoints,
                    best=run.keep_best_checkpoints,
                    every=run.checkpoint_every if run.spikes and run.spikes.action == "rollback" else None,
                )

        return write

    def _put(self, snapshot: checkpoint.Snapshot, state: checkpoint.State, name: str) -> None:
        storage, first = self.spec.storage, self.share.rank == 0
        ledger.require_owner(storage, self.spec.driver)
        with tempfile.TemporaryDirectory() as place:
            checkpoint.write(Path(place), snapshot, state if first else None, self.share.rank)
            digests = checkpoint.upload(Path(place), storage, name)
        if snapshot.sharded:
            checkpoint.sign(storage, name, self.share.rank, digests)
        if first:
            if snapshot.sharded:
                digests = checkpoint.signed(storage, name, self.share.size, WORD_TIMEOUT_S)
            ledger.require_owner(storage, self.spec.driver)
            checkpoint.mark(storage, name, digests, heldout=state.heldout)

    def _load(self, *, every: int) -> checkpoint.State | None:
        """Read the checkpoint that the first worker chooses, into this one's model and optimizer."""
        with tempfile.TemporaryDirectory() as place:
            folder = self._fetch(Path(place), every)
            if folder is None:
                return None
            state = checkpoint.load(folder, self.model, self.optimizer)
            self.share.exchange(None)  # others may read from this folder
        for what, kept, mine in (
            ("has another schedule", state.schedule, vars(self.schedule)),
            ("was trained on other tokens", state.tokens_digest, self.tokens_digest),
        ):
            if kept != mine:
                raise HopelessError(f"checkpoint of step {state.step} {what}: start again with --force")
        return state

    def _fetch(self, place: Path, every: int) -> Path | None:
        """A local copy of the checkpoint that the first worker chooses; one for all workers of a machine."""
        storage, rank, mine = self.spec.storage, self.share.rank, None
        if rank == 0:
            mine, damaged = patiently(lambda: checkpoint.newest(storage, place, every=every), PATIENCE_S)
            self._give_up(damaged)
        told = self.share.exchange((socket.gethostname(), mine))
        chosen = told[0][1]
        if chosen is None:
            return None
        nearest = [host for host, _ in told].index(told[rank][0])
        if mine is None and nearest == rank:
            mine = self._fetch_again(chosen.name, place)
        shared = self.share.exchange(mine)[nearest]
        # Machines of one name need not be one machine.
        return shared if shared.is_dir() else self._fetch_again(chosen.name, place)

    def _give_up(self, damaged: Mapping[str, str]) -> None:
        """Tell of checkpoints that do not hold, and delete them: they would take others' place."""
        storage = self.spec.storage
        told = [f"{storage.uri}/{name}: {problem}" for name, problem in damaged.items()]
        if told:
            self._tag("seatrial.passed_over", "; ".join(told)[:5000])
        for name in damaged:
            patiently(storage.below(name).clear, PATIENCE_S)

    def _fetch_again(self, name: str, place: Path) -> Path:
        problem = patiently(lambda: checkpoint.fetch(self.spec.storage, name, place / name), PATIENCE_S)
        if problem is not None:
            raise RuntimeError(f"{name}: {problem}")
        return place / name

    def _problem(self, step: int) -> Exception | None:
        if (name := checkpoint.not_finite(self.model)) is not None:
            return HopelessError(
                f"after step {step} the weights {name} are not finite: lower run.learning_rate"
            )
        return self._ended(0)

    def _ended(self, timeout_s: float | None = None) -> Exception | None:
        """Wait for the write under way; what went wrong with it, or that it takes too long."""
        try:
            ended = self._writer.join(PATIENCE_S if timeout_s is None else timeout_s)
        except Exception as error:  # told to all workers, which raise it
            return error
        if ended or timeout_s == 0:
            return None
        return RuntimeError(f"{self.spec.storage.uri}: took no checkpoint: {self._writer.problem}")

    def _agree(self, problem: Exception | None) -> None:
        """Raise the first worker's problem that there is, on every worker."""
        _raise_first(self.share.exchange(problem))

    def _measure(self, key: str, step: int, began: float) -> None:
        if self.recorder is not None:
            self.recorder.add([point(key, time.perf_counter() - began, step)])

    def _tag(self, key: str, value: str) -> None:
        if self.recorder is not None:
            spec = self.spec
            self.recorder.note(key, lambda: runs.set_tags(spec.run_id, {key: value}, uri=spec.mlflow_uri))


def _raise_first(problems: Iterable[Exception | None]) -> None:
    for problem in problems:
        if problem is not None:
            raise problem
