"""Rows and trials for the tests of the store."""

from __future__ import annotations

from typing import Any

from seatrial.config.trial import TrialSection
from seatrial.experiments.assignment import Arm, TrialTable
from seatrial.experiments.trial import Trial
from seatrial.store import outcome_row


def exposure(request_id: str, unit: str, arm: str = "champion", **values: Any) -> dict[str, Any]:
    row = {"request_id": request_id, "trial_id": "svc-1", "service": "svc", "unit": unit, "sticky": True}
    row |= {"arm": arm, "assigned_version": "1", "served_version": "1", "fallback": False, "status": 200}
    return {**row, "at": 1.0, **values}


def outcome(request_id: str | None, value: float, metric: str = "resolved", **values: Any) -> dict[str, Any]:
    return outcome_row(values.pop("service", "svc"), request_id, metric, value, **{"now": 2.0, **values})


def trial(number: int = 1, service: str = "svc", **section: Any) -> Trial:
    policy = TrialSection.model_validate(section).model_dump(mode="json")
    arms = (Arm("champion", "1", 0.5), Arm("challenger", "2", 0.5))
    name = f"{service}-{number}"
    table = TrialTable(name, "seed", 1.0, arms)
    return Trial(name, service, number, "open", table, policy, "1", {"challenger": "2"}, 10.0, 10.0)
