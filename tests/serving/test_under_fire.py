"""Promotion, rollback and the death of each part under load, with everything real.

`benchmarks/under_fire.py` does the same for longer, and prints the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.serving import load, scenarios, stage
from tests.serving.fire import SERVICE, Fire, on_fire

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
RPS = 20.0


@pytest.fixture(scope="module")
def fire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fire]:
    with on_fire(tmp_path_factory.mktemp("fire")) as started:
        yield started


def test_promotions_and_rollbacks_under_load_fail_nobody_and_every_answer_is_its_versions(
    fire: Fire,
) -> None:
    running, figures = scenarios.swaps(fire, 10)
    assert running.problems == [], figures
    assert running.wrong(fire.texts) == []
    assert len(running.versions) >= 9
    assert not set(running.versions) - set(fire.texts), "no answer of a version that cannot be loaded"
    assert figures["rps"] >= RPS, figures


def test_a_challenger_that_cannot_be_loaded_is_noticed_by_no_client(fire: Fire) -> None:
    running, figures = scenarios.broken_challenger(fire)
    assert running.problems == [], figures
    assert figures["answers_of_it"] == 0
    assert {answer.arm for answer in running.answers} == {""}, "no trial opens against it"


def test_a_shadow_sees_copies_and_only_prometheus_hears_of_it(fire: Fire) -> None:
    running, figures = scenarios.shadowed(fire)
    assert running.problems == [], figures
    assert running.wrong(fire.texts) == []
    assert figures["answers_of_it"] == 0
    copies = figures["copies"]
    assert copies["different"] > 0
    assert copies["same"] == copies["failed"] == 0, "another adapter says something else"
    assert fire.store.latest_trial(SERVICE) is None


def test_answers_and_exposures_outlive_the_stores_absence(fire: Fire) -> None:
    running, figures = scenarios.store_away(fire)
    assert running.problems == [], figures
    assert {answer.arm for answer in running.answers} >= {"champion", "challenger"}
    assert running.wrong(fire.texts) == []


@pytest.mark.parametrize("arm", ["champion", "challenger"])
def test_prometheus_reads_each_arm_from_rays_agent(fire: Fire, arm: str) -> None:
    def total(name: str, **more: str) -> float:
        labels = {"service": SERVICE, "arm": arm, **more}
        found = fire.metrics(f"ray_seatrial_{name}")
        return sum(value for has, value in found if labels.items() <= has.items())

    answered = fire.exposures(arm)
    assert answered > 10
    stage.wait_until(lambda: total("requests_total", status="2xx") == answered, 40, f"{answered} requests")
    assert total("errors_total") == total("requests_total", status="5xx") == 0
    assert total("latency_seconds_count") == total("time_to_first_token_seconds_count") == answered
    assert total("completion_tokens_total") == answered * load.TOKENS
    assert total("prompt_tokens_total") > answered
    named = {found["version"] for found, _ in fire.metrics("ray_seatrial_requests_total")}
    assert named <= set(fire.made)


@pytest.mark.parametrize(
    "scenario",
    [pytest.param(scenarios.failing_challenger, marks=pytest.mark.soak), scenarios.hanging_challenger],
)
def test_a_challenger_that_breaks_is_rolled_back_and_no_client_of_the_champion_notices(
    fire: Fire, scenario: Callable[[Fire], tuple[load.Load, dict[str, Any]]]
) -> None:
    running, figures = scenario(fire)
    assert figures["champions_failed"] == 0, figures
    assert figures["verdict"] == "roll_back", figures
    # Two is the aim: `benchmarks/under_fire.py` says what is found. Here a look comes every half second.
    assert figures["looks_from_then_on"] <= 4, figures
    assert running.wrong(fire.texts) == []


def test_a_killed_controller_goes_on_where_it_was(fire: Fire) -> None:
    running, figures = scenarios.controller_killed(fire)
    assert running.problems == [], figures
    assert figures["recovered_s"] < 90, figures


def test_answers_do_not_need_mlflow(fire: Fire) -> None:
    running, figures = scenarios.mlflow_killed(fire)
    assert running.problems == [], figures
    assert figures["promoted_s"] < 60, figures


def test_a_killed_replicas_requests_are_answered_by_the_other(fire: Fire) -> None:
    running, figures = scenarios.replica_killed(fire)
    assert [a for a in running.answers if a.problem and not a.is_stream] == [], figures
    # A stream that had begun there is cut: its client was told so, and nobody can go on with it.
    assert sum(answer.problem is not None for answer in running.answers) <= 12, figures
    assert figures["gap_s"] < 15, figures
    assert figures["whole_with_an_error"] == 0, figures
    assert figures["cut_on_record"] <= figures["failed"], figures
    assert running.wrong(fire.texts) == []
