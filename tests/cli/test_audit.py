"""`seatrial audit`: as a user types it, against a real MLflow server and store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from seatrial.cli.main import main
from seatrial.registry import audit
from tests.conftest import free_port
from tests.registry.recorded import Archive

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def kept(mlflow_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """Two trials, and a champion moved back by hand between them."""
    found = Archive("audited", mlflow_uri, tmp_path_factory.mktemp("audited"))
    found.end(1)
    found.move("2", "1")
    found.end(2)
    return found


@pytest.fixture
def ask(kept: Archive, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """The command line with the archive's store and MLflow: exit code, standard output, standard error."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", kept.uri)

    def run(*arguments: str, of: Archive = kept) -> tuple[int, str, str]:
        monkeypatch.setenv("SEATRIAL_STORE_URL", of.url)
        capsys.readouterr()  # MLflow tells of each run that was made for the test
        code = main(["audit", *arguments])
        return code, *capsys.readouterr()

    return run


def archive(kept: Archive, folder: Path, service: str, trials: int = 1) -> Archive:
    found = Archive(service, kept.uri, folder)
    for number in range(1, trials + 1):
        found.end(number)
    return found


def test_a_service_s_decisions_are_listed_and_hold(kept: Archive, ask):
    code, out, err = ask("audited")
    assert (code, err) == (0, "")
    *lines, last = out.splitlines()
    rows = [line.split("\t") for line in lines]
    first, move, second = rows
    assert first[:2] == ["1", "audited-1"]
    assert first[2:5] == ["1970-01-02 04:11:40", "1 → -", "promote"]
    assert first[5] == "2,000"
    assert first[6].startswith("+0.1200 in [+0.0")
    assert first[7:] == ["seatrial controller", kept.records[0].hash[:12]]
    assert move[:2] + move[3:7] == ["2", "audited--move-2", "2 → 1", "alias", "-", "-"]
    assert second[1] == "audited-2"
    assert last == "audited: 3 records: hashes, chain and store agree"


def test_programs_read_the_whole_records(kept: Archive, ask):
    code, out, _ = ask("audited", "--json")
    found = json.loads(out)
    assert (code, found["problems"]) == (0, [])
    assert [each["key"] for each in found["records"]] == ["audited-1", "audited--move-2", "audited-2"]
    assert all(each["anchored"] and audit.digest(each["body"]) == each["hash"] for each in found["records"])


def test_a_judgement_is_recomputed_from_its_record_alone(ask):
    code, out, err = ask("--replay", "audited-1")
    assert (code, err) == (0, "")
    rows = [line.split("\t") for line in out.splitlines() if "\t" in line]
    assert {row[3] for row in rows} == {"agrees"}
    assert {"verdict", "reason", "judgement.difference.low", "judgement.srm_p"} <= {row[0] for row in rows}
    assert f"code now    {audit.code_digest()[:12]} (the same)" in out
    code, out, _ = ask("--replay", "audited-1", "--json")
    found = json.loads(out)
    assert (code, found["agrees"], found["cause"]) == (0, True, "judgement")
    assert found["code_digest"] == {"then": audit.code_digest(), "now": audit.code_digest()}


def test_of_a_move_by_hand_there_is_nothing_to_recompute_and_its_hash_is_checked(
    kept: Archive, ask, tmp_path: Path
):
    code, out, err = ask("--replay", "audited--move-2")
    assert (code, err) == (0, "")
    first, champion, by, last = out.splitlines()
    assert first.endswith("audited--move-2: a champion moved by hand: no judgement, so nothing to recompute")
    assert champion.split() == ["champion", "2", "→", "1"]
    assert "a person, through the registry" in by
    assert last.split() == ["hash", "holds"]
    found = json.loads(ask("--replay", "audited--move-2", "--json")[1])
    assert (found["champion_before"], found["champion_after"], found["holds"]) == ("2", "1", True)

    other = archive(kept, tmp_path, "moved-back")
    key = other.move("2", "1")
    other.rewrite(2, actor="nobody")
    code, out, err = ask("--replay", key, of=other)
    assert code == 1
    assert "does not hold" in out
    assert err.startswith(f"{key}: was rewritten: the store keeps the hash")


def test_what_was_taken_away_or_rewritten_is_one_line_each(kept: Archive, ask, tmp_path: Path):
    other = archive(kept, tmp_path, "tampered-list", 3)
    other.rewrite(2, actor="nobody")
    other.client.delete_run(other.records[-1].run_id)
    code, out, err = ask("tampered-list", of=other)
    assert code == 1
    assert "agree" not in out
    gone, rewritten = err.splitlines()
    assert gone.startswith("tampered-list-3: has no record: its run ")
    assert rewritten.startswith("tampered-list-2: was rewritten: number 2 ")
    code, out, _ = ask("tampered-list", "--json", of=other)
    assert code == 1
    assert json.loads(out)["problems"] == [gone, rewritten]


def test_a_lie_that_fits_the_chain_is_found_by_recomputing(kept: Archive, ask, tmp_path: Path):
    other = archive(kept, tmp_path, "lied-to")
    other.rewrite(1, verdict="roll_back")
    code, out, err = ask("--replay", "lied-to-1", of=other)
    assert code == 1
    assert "verdict\troll_back\tpromote\tDIFFERS" in out
    rewritten, field = err.splitlines()
    assert "was rewritten: the store keeps the hash" in rewritten
    assert field == "lied-to-1: verdict: recorded roll_back, recomputed promote"


def test_a_record_that_cannot_be_read_is_no_traceback(kept: Archive, ask, tmp_path: Path):
    other = archive(kept, tmp_path, "unreadable")
    other.rewrite(1, evidence="none", decided_at="noon")
    code, out, err = ask("unreadable", of=other)
    assert code == 1
    assert out.splitlines()[0].split("\t")[2:7] == ["-", "1 → -", "promote", "-", "-"]
    assert "was rewritten" in err
    other.client.log_text(other.records[0].run_id, "{", audit.RECORD)
    code, _, err = ask("--replay", "unreadable-1", of=other)
    assert code == 1
    assert "unreadable-1: cannot be recomputed: its record.json cannot be read" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "SERVICE, --replay: give one of the two"),
        (["audited", "--replay", "audited-1"], "SERVICE, --replay: give one of the two"),
        (["nobody"], "SERVICE: nobody: no such service"),
        (["it's"], "SERVICE: it's: no such name"),
        (["--replay", "audited-99"], "--replay: audited-99: no such record"),
        (["--replay", "audited--move-7"], "--replay: audited--move-7: no such record"),
    ],
)
def test_what_cannot_be_asked_is_one_line_and_exit_code_2(ask, arguments: list[str], said: str):
    code, out, err = ask(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(said)
    assert err.count("\n") == 1


def test_mlflow_that_is_away_is_told_as_that(ask, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    code, _, err = ask("audited")
    assert code == 75
    assert err.startswith("MLFLOW_TRACKING_URI: ")
