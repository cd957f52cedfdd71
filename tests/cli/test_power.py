"""`seatrial power`: as a user types it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from seatrial.cli.main import main
from seatrial.config.service import ServiceConfig
from seatrial.store import Store


def rows(capsys) -> dict[str, list[str]]:
    """Name of the test → its cells, as printed where no person looks."""
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines() if "\t" in line]
    return {name: cells for name, *cells in lines}


def deployed(tmp_path: Path, monkeypatch, trial: dict[str, object]) -> None:
    url = f"sqlite:///{tmp_path}/seatrial.db"
    monkeypatch.setenv("SEATRIAL_STORE_URL", url)
    store = Store(url)
    store.migrate()
    body = {"name": "svc", "engine": {"base": "m"}, "http": {"allow_anonymous": True}, "trial": trial}
    store.put_service("svc", ServiceConfig.model_validate(body).model_dump(mode="json"), now=1.0)
    store.close()


def test_units_and_days_stand_beside_the_test_that_is_looked_at_once(capsys):
    assert main(["power", "--baseline", "0.3", "--lift", "0.1", "--units-per-day", "1000"]) == 0
    found = rows(capsys)
    assert found["looked at once"] == ["7519", "7519", "7.5", "7.5"]
    average, most = map(int, found["looked at all the time"][:2])
    assert average < most
    assert found["looked at all the time"][3] == f"{most / 1000:.1f}"
    assert "5 planned looks" in found


def test_a_service_gives_its_alpha_split_and_minimum(tmp_path: Path, monkeypatch, capsys):
    deployed(tmp_path, monkeypatch, {"alpha": 0.01, "challenger_share": 0.2, "minimum_units": 1000})
    assert main(["power", "svc", "--baseline", "0.3"]) == 0
    out = capsys.readouterr().out
    assert "alpha 0.01, power 0.8, split 0.2" in out
    assert "tuning_units" in out
    assert "give --units-per-day" in out
    assert main(["power", "other"]) == 2
    assert "use one of svc" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--baseline", "0.9", "--lift", "0.3"], "--baseline: 0.9 to 1.17"),
        (["--lift", "0"], "--lift: 0 cannot be found"),
        (["--power", "1.5"], "--power: 1.5"),
        (["--power", "0.01"], "--power: 0.01: give more than alpha"),
        (["--split", "0"], "--split: 0"),
        (["--sd", "-1"], "--sd: -1"),
        (["--sd", "1e300"], "--sd: 1e+300: give a number above 0, at most 1e+15"),
        (["--alpha", "0.5"], "--alpha: 0.5: give a share from 1e-09 up to, not including, 0.5"),
        (["--alpha", "1e-18"], "--alpha: 1e-18: give a share from 1e-09"),
        (["--lift", "1e-17"], "--lift: takes 3.1e+35 units"),
        (["--lift", "1e-300"], "--lift: takes inf units"),
        (["--baseline", "1", "--sd", "1e-200"], "--sd: 1e-200: too small"),
        (["--lift", "nan"], "--lift: nan: give a number from"),
        (["--lift", "1e-12"], "--lift: takes 3.1e+25 units"),
        (["--baseline", "inf", "--sd", "1"], "--baseline: inf: give a number from"),
        (["--units-per-day", "inf"], "--units-per-day: inf"),
    ],
)
def test_what_cannot_be_computed_is_one_line_and_exit_code_2(arguments, said, capsys):
    assert main(["power", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(said)
    assert error.count("\n") == 1


def test_a_lift_that_is_seen_at_the_first_look_takes_until_then(tmp_path: Path, monkeypatch, capsys):
    assert main(["power", "--baseline", "1", "--lift", "1", "--sd", "0.001"]) == 0
    found = rows(capsys)
    assert found["looked at all the time"][:2] == found["looked at once"][:2] == ["2", "2"]
    deployed(tmp_path, monkeypatch, {"minimum_units": 5000})
    assert main(["power", "svc", "--baseline", "0.5", "--lift", "0.9"]) == 0
    found = rows(capsys)
    assert found["looked at all the time"][:2] == ["5000", "5000"]
    assert found["looked at once"][:2] == ["23", "23"]


def test_days_are_those_of_the_users_whom_trials_may_touch(tmp_path: Path, monkeypatch, capsys):
    deployed(tmp_path, monkeypatch, {"holdout": 0.2, "namespace": {"name": "n", "start": 0.5, "end": 1.0}})
    assert main(["power", "svc", "--units-per-day", "1000"]) == 0
    units, _, days, _ = rows(capsys)["looked at once"]
    assert float(days) == pytest.approx(int(units) / 400, abs=0.05)


def test_a_slight_lift_is_computed_in_seconds(capsys):
    began = time.monotonic()
    assert main(["power", "--baseline", "0.3", "--lift", "0.0005"]) == 0
    assert time.monotonic() - began < 30  # 4 s of one core; when every bound had nodes up to it: 70 s
    average, most = map(int, rows(capsys)["looked at all the time"][:2])
    assert 2.9e8 < average < most < 9e8
