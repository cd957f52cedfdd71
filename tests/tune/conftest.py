"""The tiny base, data, cluster and job processes of the tests of jobs, for searches."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

JOBS = Path(__file__).parent.parent / "jobs"
sys.path.insert(0, str(JOBS))  # for its helper `job_processes`


def _conftest() -> Any:
    spec = importlib.util.spec_from_file_location("jobs_conftest", JOBS / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_jobs = _conftest()
data, tiny_base, cluster, start_job = _jobs.data, _jobs.tiny_base, _jobs.cluster, _jobs.start_job
