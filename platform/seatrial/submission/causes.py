"""Why an attempt ended badly, in one line, with what to do next. Pure: statuses and lines in, a cause out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from seatrial.errors import RetryableError, UserError
from seatrial.monitoring.logs import cause, plain
from seatrial.store.job import Cause, Job
from seatrial.submission.events import JOB_MANAGER
from seatrial.submission.screening import redact

GATE_FAILED = 3
KILLED = 128 + 9  # as a shell reports SIGKILL
TERMINATED = 128 + 15
LONGEST = 400
MOST_CHARS = 4000  # of a text that is searched for what to say and to hide
# `(RayTrainWorker pid=…)` repetitions and Ray's notes about itself explain no failure.
RAY_CHATTER = re.compile(rf"^\(\w[\w() ]*pid=|INFO (?:worker|sdk|cli)\.py|{JOB_MANAGER.pattern}")
OUT_OF_MEMORY = re.compile(
    r"OutOfMemoryError|CUDA out of memory|HIP out of memory|can't allocate memory|Cannot allocate memory"
    r"|DefaultCPUAllocator|\bMemoryError\b|killed due to (?:the node running low on )?memory|OOM[- ]?kill",
    re.IGNORECASE,
)
NOT_A_NUMBER = re.compile(
    r"(?:\bNaN\b|not finite|\bis no number|no longer a number|is inf\b|\bloss is (?:nan|inf))", re.IGNORECASE
)
LOST_NODE = re.compile(
    r"ActorDiedError|WorkerCrashedError|NodeDiedError"
    r"|node (?:was|has been|is) (?:lost|dead|terminated|preempted)"
    r"|The actor died|node .{0,60} died|raylet .{0,40} died|owner .{0,40} died|supervisor actor died",
    re.IGNORECASE,
)
# Ray's guesses at why a process is gone, an OOM killer first among them, are no evidence.
GUESSES = re.compile(r"\s*Some common causes include:.*", re.DOTALL)
NO_ROOM = re.compile(r"could not be scheduled|ActorUnschedulableError|is infeasible|cannot be scheduled")
# Ray's error types that say more than the driver's exit code, which does not exist then.
ENVIRONMENT = ("RUNTIME_ENV_SETUP_FAILURE", "JOB_ENTRYPOINT_COMMAND_START_ERROR")
LOST = ("JOB_SUPERVISOR_ACTOR_DIED", "JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE")
NOT_STARTED = ("JOB_SUPERVISOR_ACTOR_START_TIMEOUT", "JOB_SUPERVISOR_ACTOR_START_FAILURE")


@dataclass(frozen=True)
class Finish:
    """How Ray saw an attempt end, and the last lines of its log."""

    status: str
    """`SUCCEEDED`, `FAILED`, `STOPPED`, or `LOST` when Ray does not know the attempt any more."""
    exit_code: int | None = None
    message: str = ""
    error_type: str = ""
    lines: Sequence[str] = ()


@dataclass(frozen=True)
class Next:
    """The commands that a person can run after a failure."""

    retry: str
    logs: str
    recipe: str | None = None

    @classmethod
    def in_queue(cls, job: Job) -> Next:
        """For a job of the queue."""
        return cls(f"seatrial jobs retry {job.id}", f"seatrial jobs logs {job.id}", job.spec.recipe)

    @classmethod
    def in_ray(cls, submission_id: str, recipe: str | None) -> Next:
        """For one that was handed to Ray without the queue."""
        logs = f"ray job logs {submission_id}"
        return cls(f"seatrial train {recipe}" if recipe else "submit it again", logs, recipe)


def diagnose(finish: Finish, following: Next) -> Cause | None:
    """The cause; None when the attempt succeeded."""
    if finish.status == "SUCCEEDED":
        return None
    kind, text = _kind_and_text(finish)
    return made(kind, text, following)


def made(kind: str, text: str, following: Next) -> Cause:
    """The cause of this kind with its remedy; secrets in the text are hidden, controls left out."""
    line = redact(" ".join(plain(text[:MOST_CHARS].replace("\n", " ")).split()))[:LONGEST]
    return Cause(kind, line, _remedy(kind, following), kind in RETRYABLE)


RETRYABLE = ("lost_node", "killed", "unavailable", "not_started")


def _kind_and_text(finish: Finish) -> tuple[str, str]:
    if finish.status == "STOPPED":
        return "stopped", "was stopped"
    if finish.status == "LOST":
        return "lost_node", "Ray does not know the attempt any more: the cluster started again"
    said = [GUESSES.sub("", plain(line[:MOST_CHARS])).strip() for line in finish.lines]
    own = [line for line in said if not RAY_CHATTER.search(line)]
    if finish.exit_code is None:
        message = GUESSES.sub("", " ".join(finish.message.split()))
        return _driverless(finish, message or cause(own) or "its driver was lost", said)
    message = (finish.message.strip().splitlines() or [""])[0].partition(", last available logs")[0]
    if finish.exit_code in (KILLED, -9):
        return "killed", "its driver was killed (SIGKILL; out of memory?)"
    if finish.exit_code < 0:
        return "killed", f"its driver was ended by signal {-finish.exit_code}"
    why = cause(own) or message or f"exit code {finish.exit_code}"
    if finish.exit_code == UserError.exit_code:
        return "user_error", why
    if finish.exit_code == GATE_FAILED:
        return "gate", why
    if finish.exit_code == RetryableError.exit_code:
        return "unavailable", why
    if finish.exit_code == TERMINATED:
        return "stopped", "was terminated"
    return _by_words(said, why)


def _driverless(finish: Finish, message: str, said: Sequence[str]) -> tuple[str, str]:
    """The driver was never started, or was lost before it could say why."""
    if finish.error_type in ENVIRONMENT or "runtime_env" in message:
        return "bad_environment", _environment_line(message)
    if NO_ROOM.search(message):
        return "unschedulable", message
    if any(OUT_OF_MEMORY.search(line) for line in (message, *said[-20:])):
        return "out_of_memory", _last_match(OUT_OF_MEMORY, [message, *said]) or message
    if finish.error_type in NOT_STARTED:
        return "not_started", message
    return "lost_node", message


def _by_words(said: Sequence[str], why: str) -> tuple[str, str]:
    """By what the driver's last complaint says, or else a line above it."""
    words = (("out_of_memory", OUT_OF_MEMORY), ("not_a_number", NOT_A_NUMBER), ("lost_node", LOST_NODE))
    for kind, pattern in words:
        if pattern.search(why):
            return kind, why
    memory = _last_match(OUT_OF_MEMORY, said[-40:])
    return ("out_of_memory", memory) if memory else ("failed", why)


def _environment_line(message: str) -> str:
    """What pip, conda or the download said, out of Ray's story around it."""
    errors = re.findall(r"(?:ERROR|error|Error):? ([^\n]{8,200})", message)
    told = errors[0] if errors else message.removeprefix("runtime_env setup failed: ")
    return f"the runtime environment could not be set up: {told}"


def _last_match(pattern: re.Pattern[str], lines: Sequence[str]) -> str | None:
    return next((line for line in reversed(lines) if pattern.search(line)), None)


def _remedy(kind: str, following: Next) -> str:
    """Commands of a recipe's job name its file; any other job can only be tried again or be read."""
    retry, logs = following.retry, following.logs
    if following.recipe is None:
        return logs if kind in ("failed", "user_error", "not_a_number", "gate") else retry
    file = following.recipe
    again = f"seatrial train {file}"
    return {
        "out_of_memory": f"raise run.accumulate or lower run.seq_tokens in {file}, then: {again}",
        "bad_environment": f"mend the environment (--env, the packages of the nodes), then: {retry}",
        "unschedulable": f"lower resources in {file}, then: {again}; or add nodes, then: {retry}",
        "not_a_number": f"lower run.learning_rate or set run.spikes in {file}, then: {again}",
        "lost_node": f"it resumes from its last checkpoint: {retry}",
        "killed": f"it resumes from its last checkpoint: {retry}",
        "not_started": retry,
        "unavailable": f"seatrial status, then: {retry}",
        "user_error": f"mend what it names, then: {again}",
        "gate": f"change {file} by what its run says, then: {again}",
        "stopped": f"go on from its last checkpoint: {retry}",
        "time_limit": f"go on from its last checkpoint: {retry} --time-limit HOURS",
        "dependency": f"retry that one first, then: {retry}",
        "refused": f"mend what it names, then: {again}",
    }.get(kind, logs)
