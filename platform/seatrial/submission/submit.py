"""Hand a job to Ray's Jobs API."""

from __future__ import annotations

import logging
import secrets
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from seatrial.config.addresses import Addresses, read_recorded
from seatrial.errors import RetryableError, SeatrialError, UserError
from seatrial.monitoring.bearer import bearer, token_source
from seatrial.monitoring.probe import Probe
from seatrial.submission.package import OURS
from seatrial.submission.screening import require_none

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Job:
    """What is submitted. ``submission_id`` is its name in Ray's dashboard and in `ray job` commands."""

    submission_id: str
    entrypoint: str
    runtime_env: Mapping[str, Any]
    metadata: Mapping[str, str]


def connect(addresses: Addresses) -> JobSubmissionClient:
    """A client of the cluster's Jobs API.

    Raises:
        RetryableError: the cluster does not answer.
        UserError: it wants another token.
    """
    url = addresses.ray_dashboard
    headers = bearer(addresses)
    answer = Probe(f"{url}/api/version", headers).ask()
    if answer.status in (401, 403):
        raise UserError(
            f"{token_source(addresses)}: {url} refuses this token: "
            'run `eval "$(seatrial env)"` or set it to the cluster\'s token'
        )
    if answer.trouble is not None:
        raise RetryableError(
            f"RAY_API_SERVER_ADDRESS: {answer.trouble}: run `seatrial up`, or set it to a running cluster"
        )
    from ray.job_submission import JobSubmissionClient

    # It reports the end of every log stream as news.
    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
    return JobSubmissionClient(url, headers=dict(headers))


def is_same_machine(addresses: Addresses) -> bool:
    """Whether the cluster is the local stack's, which sees our files where they are."""
    host = urlsplit(addresses.ray_dashboard).hostname
    recorded = read_recorded(addresses.home).get("ray_dashboard")
    return host in LOOPBACK_HOSTS and recorded == addresses.ray_dashboard


def make_job(
    module: str,
    recipe: Path,
    name: str,
    *,
    folder: Path,
    upload: bool,
    force: bool = False,
    env: Mapping[str, str] | None = None,
    now: float,
) -> Job:
    """The job that runs `python -m MODULE RECIPE` in ``folder``.

    With ``upload`` the folder travels with the job (without what `.gitignore` names and the state of a local
    stack), otherwise the cluster sees it under the same path.

    Raises:
        UserError: a recipe outside of the folder that is uploaded.
    """
    entrypoint = entrypoint_of(module, recipe, folder=folder, upload=upload, force=force)
    runtime_env: dict[str, Any] = {}
    if upload:
        runtime_env = {"working_dir": str(folder.absolute()), "excludes": list(OURS)}
    if env:
        runtime_env["env_vars"] = dict(env)
    metadata = {"seatrial.recipe": recipe.name, "seatrial.job": name}
    return Job(submission_id(name, now), entrypoint, runtime_env, metadata)


def entrypoint_of(module: str, recipe: Path, *, folder: Path, upload: bool, force: bool) -> str:
    """The command that runs the recipe in ``folder``, or in its copy where it is uploaded.

    Raises:
        UserError: a recipe outside of the folder that is uploaded.
    """
    where = recipe.absolute()
    arguments = ["--force"] if force else []
    if not upload:
        command = shlex.join([sys.executable, "-m", module, str(where), *arguments])
        return f"cd {shlex.quote(str(folder.absolute()))} && exec {command}"
    if not where.is_relative_to(folder.absolute()):
        raise UserError(f"{recipe}: outside of {folder}, which is uploaded: run this in a folder above it")
    shown = str(where.relative_to(folder.absolute()))
    return shlex.join(["python", "-m", module, shown, *arguments])


def submission_id(name: str, now: float) -> str:
    """`NAME-YYYYMMDD-HHMM-xxxx`, which sorts by time and can be read out."""
    return f"{name}-{time.strftime('%Y%m%d-%H%M', time.localtime(now))}-{secrets.token_hex(2)}"


def submit(client: JobSubmissionClient, job: Job) -> str:
    """Submit it and return its id.

    Raises:
        UserError: something in it looks like a secret.
        SeatrialError: the cluster refused it.
    """
    require_none(job.entrypoint, job.runtime_env.get("env_vars", {}), job.metadata)
    try:
        accepted = client.submit_job(
            entrypoint=job.entrypoint,
            submission_id=job.submission_id,
            runtime_env=dict(job.runtime_env),
            metadata=dict(job.metadata),
        )
    except (RuntimeError, ValueError, ConnectionError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise SeatrialError(f"{job.submission_id}: Ray refused the job: {first}") from error
    return str(accepted)
