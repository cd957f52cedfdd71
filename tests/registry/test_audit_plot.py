"""The picture in the record: every arm, the sample ratio, every guardrail."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import pytest
from matplotlib.text import Text

from seatrial.config.trial import TrialSection
from seatrial.experiments.assignment import Arm, TrialTable
from seatrial.experiments.evidence import ArmEvidence, Evidence
from seatrial.experiments.sequential import ArmStats
from seatrial.experiments.trial import Decision, Look, Trial, look_at
from seatrial.registry.audit_plot import BAD, draw

ARMS = {"champion": "1", "challenger": "2", "challenger-b": "3"}


def told(
    dropped: dict[str, str], failures: int = 0, looks: int = 2, **section: Any
) -> tuple[Trial, Decision, list[Look]]:
    policy = TrialSection.model_validate({"minimum_units": 200, **section}).model_dump(mode="json")
    here = {name: version for name, version in ARMS.items() if name not in dropped}
    arms = tuple(Arm(name, version, 1 / len(here)) for name, version in here.items())
    challengers = {name: version for name, version in ARMS.items() if name != "champion"}
    table = TrialTable("svc-1", "seed", 1.0, arms)
    trial = Trial("svc-1", "svc", 1, "open", table, policy, "1", challengers, 0.0, 0.0, dropped=dropped)
    kept: list[Look] = []
    for number in range(1, looks + 1):
        units = 300 * number
        stats = ArmStats(units, 0.3 * units, 0.3 * units)
        found = tuple(
            ArmEvidence(name, version, units, units, units, units, failures, 0, units, stats, failures)
            for name, version in here.items()
        )
        evidence = Evidence(1000.0 * number, found)
        judgement = look_at(trial, evidence, 1000.0 * number)
        kept.append(Look(trial.id, evidence.units, 1000.0 * number, dict.fromkeys(here, units), judgement))
    decision = Decision(
        "svc-1", "svc-1", "svc", judgement.verdict or "inconclusive", judgement.reason, "who", evidence,
        judgement, 2000.0,
    )  # fmt: skip
    return trial, decision, kept


def texts(figure: Any) -> list[Text]:
    figure.savefig(io.BytesIO(), format="png")
    return [each for each in figure.findobj(Text) if each.get_text()]


def test_every_arm_the_sample_ratio_and_every_guardrail_are_in_it():
    figure = draw(*told({}))
    said = [each.get_text() for each in texts(figure)]
    assert said.count("challenger") == said.count("challenger-b") == 3  # two legends and a guardrail
    assert said.count("max_error_share") == said.count("kept") == 2
    assert "sample ratio p" in said
    assert "invalid at 0.0005" in said
    assert any(each.startswith("versions 2 and 3 against 1, 97.5% confidence sequence") for each in said)
    interval = figure.axes[0]
    assert (
        len([line for line in interval.lines if len(line.get_xdata()) == 2 and line.get_label() in ARMS]) == 2
    )


@pytest.mark.parametrize(
    ("decision", "name"),
    [
        ({"type": "group_sequential", "looks": 2, "units": 1800}, "repeated confidence interval"),
        ({"type": "thompson"}, "interval, which moving shares may make too narrow"),
    ],
)
def test_the_interval_is_called_what_it_is(decision: dict[str, Any], name: str):
    said = [each.get_text() for each in texts(draw(*told({}, decision=decision)))]
    assert any(each.startswith(f"versions 2 and 3 against 1, 97.5% {name}. ") for each in said)


def test_a_guardrail_that_is_broken_is_red():
    found = texts(draw(*told({}, failures=250)))
    broken = [each for each in found if each.get_text() == "broken"]
    assert [each.get_color() for each in broken] == [BAD, BAD]


@pytest.mark.parametrize("without", ["looks", "arm"])
def test_what_is_not_there_is_left_out(without: str):
    trial, decision, looks = told({"challenger-b": "worse"})
    said = [each.get_text() for each in texts(draw(trial, decision, looks if without == "arm" else []))]
    assert said.count("max_error_share") == 1
    assert ("no interval: too little evidence" in said) == (without == "looks")


def test_looks_of_one_challenger_that_do_not_name_it_are_drawn():
    trial, decision, looks = told({"challenger-b": "worse"})
    trial = dataclasses.replace(trial, challengers={"challenger": "2"}, dropped={})
    old = [
        dataclasses.replace(each, judgement=dataclasses.replace(each.judgement, arms={})) for each in looks
    ]
    assert "no interval: too little evidence" not in [
        each.get_text() for each in texts(draw(trial, decision, old))
    ]


@pytest.mark.parametrize(
    "reason", ["stopped: $5 or $6", r"stopped: $\frac$", "no such file ${A}_$ in $B^", "a\\$b$"]
)
def test_what_a_person_or_an_engine_says_is_text_and_no_formula(reason: str):
    trial, decision, looks = told({})
    figure = draw(trial, dataclasses.replace(decision, reason=reason), looks)
    assert any(each.get_text().endswith(reason) and not each.get_parse_math() for each in texts(figure))
