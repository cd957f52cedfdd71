"""How long a service that failed is left alone, and how often that is said."""

from __future__ import annotations

import logging

import pytest

from seatrial.controller.trouble import FIRST_REST_S, Log, Rests, Trouble
from seatrial.reconcile.world import DesiredService

SERVICE = DesiredService("svc", {}, "/", "models:/base/1", {"champion": "1"}, {}, 1.0)
TROUBLE = Trouble.of(ValueError("507 Insufficient Storage"))


def test_a_service_rests_for_a_while_and_longer_each_time():
    rests = Rests()
    rests.begin(SERVICE, TROUBLE, 1000.0)
    assert rests.of(SERVICE, 1000.0 + FIRST_REST_S - 0.1) is TROUBLE
    assert rests.of(SERVICE, 1000.0 + FIRST_REST_S) is None
    rests.begin(SERVICE, TROUBLE, 1010.0)
    assert rests.of(SERVICE, 1010.0 + FIRST_REST_S) is TROUBLE


def test_a_clock_that_is_set_back_prolongs_no_rest_and_silences_nothing(caplog: pytest.LogCaptureFixture):
    rests, log = Rests(), Log()
    rests.begin(SERVICE, TROUBLE, 90_000.0)
    assert rests.of(SERVICE, 1000.0) is None
    with caplog.at_level(logging.WARNING, logger="seatrial.controller"):
        for now in (90_000.0, 90_001.0, 1000.0):
            log.say([TROUBLE], now)
    assert len(caplog.records) == 2


def test_what_went_wrong_is_one_line_without_the_passwords_of_its_urls():
    error = ConnectionError("http://joe:hunter2@ray.example:8265/api does not answer (a@b)\nat line 3")
    said = Trouble.of(error, "svc", "PutApps").text
    assert said == "svc: PutApps: ConnectionError: http://ray.example:8265/api does not answer (a@b)"
