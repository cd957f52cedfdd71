"""Places that cannot be used, and addresses with keys in them."""

from __future__ import annotations

from pathlib import Path

import pytest
from job_processes import S3Server

from seatrial.errors import RetryableError, UserError
from seatrial_jobs.objects import without_keys
from seatrial_jobs.storage import Storage, answering

NOWHERE = "?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1"


@pytest.mark.parametrize(
    "setting",
    [
        "s3://KEY:SECRET@bucket/x?region=us-east-1",
        "s3://KEY:SEC%2FRET@bucket/x?region=us-east-1",
        "s3://KEY:SEC/RET@bucket/x?region=us-east-1",
        "s3://KEY:SECRET",
        "s3://KEY@bucket/x?region=us-east-1",
        "ftp://KEY:SECRET@host/x",
    ],
)
def test_keys_in_an_address_are_refused_and_not_repeated(setting: str, tmp_path: Path):
    with pytest.raises(UserError, match=r"run\.storage: ") as caught:
        Storage.of(setting, tmp_path)
    assert "\n" not in str(caught.value)
    for part in ("KEY", "SEC", "RET"):
        assert part not in str(caught.value).replace("AWS_ACCESS_KEY_ID and its secret", "")


@pytest.mark.parametrize("setting", ["s3://bucket/a@b/c?endpoint_override=h:9000&scheme=http", "runs/a@b:c"])
def test_an_address_without_keys_stays_as_it_is(setting: str, tmp_path: Path):
    expected = setting if "://" in setting else str(tmp_path / setting)
    assert Storage.of(setting + ("&region=eu-west-1" if "?" in setting else ""), tmp_path).uri.startswith(
        expected
    )


@pytest.mark.parametrize("setting", ["s3://bucket/a/?region=us-east-1", "runs/a/"])
def test_a_slash_at_the_end_changes_nothing(setting: str, tmp_path: Path):
    _, path = Storage.of(setting, tmp_path).below("job").connect()
    assert path in ("bucket/a/job", str(tmp_path / "runs/a/job"))


@pytest.mark.slow
@pytest.mark.usefixtures("s3_keys")
@pytest.mark.parametrize("endpoint", ["{}&scheme=http", "http://{}"])
def test_what_is_written_under_any_form_of_an_endpoint_can_be_deleted(
    s3: S3Server, tmp_path: Path, endpoint: str
):
    uri = f"s3://bucket/forms?endpoint_override={endpoint.format(s3.address)}"
    place = Storage.of(uri, tmp_path).below("job")
    place.write("checkpoint/x", b"1")
    assert place.folders() == ["checkpoint"]
    place.below("checkpoint").clear()
    assert place.folders() == []


def test_keys_are_cut_off_at_the_host():
    assert without_keys("s3://k:s@bucket/x?region=r@q") == "s3://bucket/x?region=r@q"
    assert without_keys("a/directory@home") == "a/directory@home"


@pytest.mark.parametrize("setting", ["file", "file/below", "/proc/seatrial", "x" * 300])
def test_a_directory_that_cannot_be_made_is_a_user_error(setting: str, tmp_path: Path):
    (tmp_path / "file").write_text("")
    storage = Storage.of(setting, tmp_path)
    with pytest.raises(UserError, match=r"run\.storage: .*: cannot be used") as caught, answering(storage):
        storage.below("job").write("x", b"")
    assert "\n" not in str(caught.value)


def test_an_object_store_that_does_not_answer_may_do_so_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    storage = Storage.of(f"s3://bucket/jobs{NOWHERE}", tmp_path)
    expected = r"run\.storage: s3://bucket/jobs: does not answer"
    with pytest.raises(RetryableError, match=expected) as caught, answering(storage):
        storage.below("job").read("x")
    assert "\n" not in str(caught.value)
    filesystem, _ = storage.connect()
    with pytest.raises(RetryableError, match="does not answer"), answering(storage):
        filesystem.delete_file("bucket/jobs/x")
