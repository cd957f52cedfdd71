"""Each way in which a job ends badly has one line, a kind, and the next command."""

from __future__ import annotations

import pytest

from seatrial.submission.causes import LONGEST, Finish, Next, diagnose

QUEUED = Next("seatrial jobs retry x", "seatrial jobs logs x", "r.yaml")
RUNTIME_ENV = (
    "runtime_env setup failed: Failed to set up runtime environment.\nCould not create the actor because its "
    "associated runtime env failed to be created.\nTraceback (most recent call last):\n  ...\n"
    "ERROR: No matching distribution found for nonsense==9.9\n"
)
CUDA = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of 79 GiB"
USER = "r.yaml:3: run.steps: 0: give more"
GATE = "not registered: loss 9 is above gate.max_loss 1"
KILLED = "its driver was killed (SIGKILL; out of memory?)"
LOST = "Ray does not know the attempt any more: the cluster started again"
NO_ROOM = "Job supervisor actor could not be scheduled: no node"
NOT_STARTED = "Job supervisor actor failed to start within 900 seconds"
TIMEOUT = "JOB_SUPERVISOR_ACTOR_START_TIMEOUT"
STARTED = "Running entrypoint for job x: python job.py"
SILENT = "Job entrypoint command failed with exit code 1"
DIED = "Job supervisor actor died: the node has died"
GONE = "The actor is dead because its worker process has died."
GUESSED = f"{GONE} Some common causes include: (1) the process was killed by the OOM killer"
SUPERVISOR = "JOB_SUPERVISOR_ACTOR"
RAY_OOM = (
    "ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.",
    "seatrial_jobs.job.JobFailedError: the workers failed",
)


@pytest.mark.parametrize(
    ("finish", "kind", "text", "is_retryable"),
    [
        (Finish("FAILED", 1, lines=("Traceback", CUDA)), "out_of_memory", CUDA, False),
        (Finish("FAILED", 1, lines=("x", "MemoryError")), "out_of_memory", "MemoryError", False),
        (Finish("FAILED", 1, lines=RAY_OOM), "out_of_memory", RAY_OOM[0], False),
        (
            Finish("FAILED", 1, lines=("the loss became nan: lower run.learning_rate or mend the data",)),
            "not_a_number",
            "the loss became nan: lower run.learning_rate or mend the data",
            False,
        ),
        (
            Finish("FAILED", None, RUNTIME_ENV, "RUNTIME_ENV_SETUP_FAILURE"),
            "bad_environment",
            "the runtime environment could not be set up: No matching distribution found for nonsense==9.9",
            False,
        ),
        (Finish("FAILED", None, NO_ROOM, f"{SUPERVISOR}_UNSCHEDULABLE"), "unschedulable", NO_ROOM, False),
        (Finish("FAILED", None, DIED, f"{SUPERVISOR}_DIED"), "lost_node", DIED, True),
        (Finish("FAILED", None, GUESSED, f"{SUPERVISOR}_DIED"), "lost_node", GONE, True),
        (Finish("FAILED", 1, lines=(f"ray.exceptions.ActorDiedError: {GUESSED}",)), "lost_node",
         f"ray.exceptions.ActorDiedError: {GONE}", True),
        (Finish("FAILED", None, NOT_STARTED, TIMEOUT), "not_started", NOT_STARTED, True),
        (Finish("FAILED", 137), "killed", KILLED, True),
        (Finish("FAILED", -9, "failed\nlong log"), "killed", KILLED, True),
        (Finish("FAILED", -11, "failed\nlong log"), "killed", "its driver was ended by signal 11", True),
        (Finish("FAILED", 2, lines=(USER, STARTED)), "user_error", USER, False),
        (Finish("FAILED", 1, f"{SILENT}, last available logs (truncated to 20,000 chars):\n{STARTED}", "",
         (STARTED,)), "failed", SILENT, False),
        (Finish("FAILED", 75, lines=("MLflow: away",)), "unavailable", "MLflow: away", True),
        (Finish("FAILED", 2, lines=(USER,)), "user_error", USER, False),
        (Finish("FAILED", 3, lines=(GATE,)), "gate", GATE, False),
        (Finish("FAILED", 1, lines=("Traceback", "ValueError: x", "bye")), "failed", "ValueError: x", False),
        (Finish("LOST"), "lost_node", LOST, True),
        (Finish("STOPPED"), "stopped", "was stopped", False),
    ],
)  # fmt: skip
def test_a_cause_has_a_kind_a_line_and_a_next_command(
    finish: Finish, kind: str, text: str, is_retryable: bool
) -> None:
    cause = diagnose(finish, QUEUED)
    assert cause is not None
    assert (cause.kind, cause.text, cause.is_retryable) == (kind, text, is_retryable)
    assert "seatrial " in cause.remedy
    assert "\n" not in cause.text + cause.remedy


def test_success_has_no_cause() -> None:
    assert diagnose(Finish("SUCCEEDED", 0), QUEUED) is None


def test_a_word_like_nan_inside_another_means_nothing() -> None:
    cause = diagnose(Finish("FAILED", 1, lines=("KeyError: 'finance'",)), QUEUED)
    assert cause is not None
    assert cause.kind == "failed"


def test_workers_repetitions_explain_nothing() -> None:
    lines = ("ValueError: the real one", "(RayTrainWorker pid=7) ConnectionError: a consequence")
    cause = diagnose(Finish("FAILED", 1, lines=lines), QUEUED)
    assert cause is not None
    assert cause.text == "ValueError: the real one"


def test_a_cause_is_short_and_holds_no_secret() -> None:
    lines = (f"ValueError: postgresql://joe:hunter2@db/x {'y' * 900}",)
    cause = diagnose(Finish("FAILED", 1, lines=lines), QUEUED)
    assert cause is not None
    assert "hunter2" not in cause.text
    assert len(cause.text) == LONGEST


def test_what_was_handed_to_ray_directly_is_not_told_of_the_queue() -> None:
    cause = diagnose(Finish("FAILED", 137), Next.in_ray("x-1", "r.yaml"))
    assert cause is not None
    assert cause.remedy == "it resumes from its last checkpoint: seatrial train r.yaml"


def test_a_cause_can_be_kept_and_shown_whatever_the_job_printed() -> None:
    lines = ("ValueError: a\x00b \x1b]0;title\x07\x1b[2Jc \ud800" + "a-" * 500_000,)
    cause = diagnose(Finish("FAILED", 1, lines=lines), QUEUED)
    assert cause is not None
    assert cause.text.startswith("ValueError: ab c a-a-")
    assert cause.text.isprintable()
    assert len(cause.text) == LONGEST
