"""The file that records wait in: full, cut, torn, taken over, and never lost."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from seatrial.store import Store
from seatrial_serving import spool as spool_module
from seatrial_serving.recorder import Recorder
from seatrial_serving.spool import Spool, SpoolFullError, orphans
from tests.serving.recording import exposure, outcome, rows


@pytest.mark.parametrize("call", ["write", "rename", "fdatasync"])
def test_a_spool_that_cannot_be_shortened_keeps_every_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    spool = Spool.create(tmp_path)
    spool.append(b'{"n":1}\n{"n":2}\n')

    def full(*_: Any, **__: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path if call == "rename" else spool_module.os, call, full)
        with pytest.raises(OSError, match="No space"):
            spool.drop(8, b'{"kept":1}\n')
    assert spool.read(0, 1000)[0] == [{"n": 1}, {"n": 2}]
    spool.append(b'{"n":3}\n')
    spool.drop(8, b'{"kept":1}\n')
    assert spool.read(0, 1000)[0] == [{"kept": 1}, {"n": 2}, {"n": 3}]
    assert spool.size == spool.path.stat().st_size
    spool.sync()
    assert list(orphans(tmp_path)) == [], "the new file is locked too"


def test_half_a_line_is_taken_back_or_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool.create(tmp_path)
    spool.append(b'{"n":1}\n')
    write = os.write

    def half(fd: int, data: bytes) -> int:
        return write(fd, data[:4])

    def away(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(spool_module.os, "write", half)
        with pytest.raises(OSError, match="took 4 of 8"):
            spool.append(b'{"n":2}\n')
        assert spool.read(0, 1000) == ([{"n": 1}], 8)
        patched.setattr(spool_module.os, "ftruncate", away)
        with pytest.raises(OSError, match="took 4 of 8"):
            spool.append(b'{"n":3}\n')
    assert spool.read(0, 1000) == ([{"n": 1}], 8), "half a line is no record"
    spool.append(b'{"n":4}\n')
    assert spool.read(0, 1000)[0] == [{"n": 1}, {"n": 4}]
    assert spool.size == spool.path.stat().st_size


async def test_what_comes_after_lines_that_were_taken_back_reaches_the_store(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recorder's thread reads at the moment when the disk has taken a line and a half of two."""
    recorder = Recorder(tmp_path / "spool", lambda: store)
    write = os.write

    def fills_up(fd: int, data: bytes) -> int:
        taken = write(fd, data[: data.index(b"\n") + 10])
        recorder.flush()
        return taken

    with monkeypatch.context() as patched:
        patched.setattr(spool_module.os, "write", fills_up)
        with pytest.raises(OSError, match="the disk took"):
            await recorder.outcomes([outcome(1), outcome(2)])
    await recorder.outcomes([outcome(3)])
    assert recorder.flush()
    assert rows(store, "outcomes") == ["r3"]


async def test_a_spool_that_somebody_cut_is_an_error_once(tmp_path: Path, store: Store) -> None:
    recorder = Recorder(tmp_path / "spool", lambda: store)
    recorder.opened(exposure(0))
    recorder.exposed(exposure(1))
    recorder.flush()
    recorder.exposed(exposure(2))
    os.truncate(recorder._spool.path, 0)
    with pytest.raises(OSError, match="somebody cut it"):
        recorder.flush()
    recorder.exposed(exposure(3))
    recorder.flush()
    assert rows(store, "exposures") == ["r1", "r3"]


async def test_rows_without_any_room_are_counted(tmp_path: Path, store: Store) -> None:
    recorder = Recorder(tmp_path / "spool", lambda: store, buffer_rows=2)
    recorder._spool._most_bytes = 10
    for number in range(5):
        recorder.exposed(exposure(number))
    assert recorder.dropped == 3
    assert recorder.flush()
    assert rows(store, "exposures") == ["r0", "r1"]


def test_a_living_owners_spool_is_left_alone(tmp_path: Path) -> None:
    mine = Spool.create(tmp_path)
    mine.append(b"{}\n")
    assert list(orphans(tmp_path)) == []
    mine.close(delete=False)
    assert len(list(orphans(tmp_path))) == 1


def test_a_file_that_its_owner_replaced_or_deleted_is_nobodys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever opened it before the change and locks it after must leave the new file alone."""
    mine = Spool.create(tmp_path)
    mine.append(b'{"n":1}\n')
    flock = spool_module.fcntl.flock

    def late(fd: int, operation: int) -> None:
        monkeypatch.setattr(spool_module.fcntl, "flock", flock)
        mine.drop(0, b"")
        flock(fd, operation)

    monkeypatch.setattr(spool_module.fcntl, "flock", late)
    assert list(orphans(tmp_path)) == []
    assert mine.read(0, 100)[0] == [{"n": 1}]
    mine.close(delete=True)
    with pytest.raises(FileNotFoundError):
        Spool(mine.path, flags=0)
    assert list(tmp_path.iterdir()) == [], "a scanner does not create again what is gone"


def test_a_torn_line_is_left_out_and_the_rest_kept(tmp_path: Path, store: Store) -> None:
    folder = tmp_path / "spool"
    folder.mkdir()
    whole = json.dumps({"t": "exposure", **exposure(1)})
    (folder / "1-dead.jsonl").write_text(f'{whole}\n{{"torn": \n{whole[:20]}')
    recorder = Recorder(folder, lambda: store)
    recorder.replay_orphans()
    assert rows(store, "exposures") == ["r1"]


async def test_a_full_spool_refuses_outcomes_and_keeps_exposures_in_memory(
    tmp_path: Path, store: Store
) -> None:
    recorder = Recorder(tmp_path / "spool", lambda: store)
    recorder._spool._most_bytes = 10
    recorder.exposed(exposure(1))
    with pytest.raises(SpoolFullError):
        await recorder.outcomes([outcome(1)])
    assert recorder.flush()
    assert rows(store, "exposures") == ["r1"]
    assert rows(store, "outcomes") == []


def test_a_line_of_garbage_is_left_out_and_the_rest_kept(tmp_path: Path, store: Store) -> None:
    """As a machine may leave it that lost its power."""
    folder = tmp_path / "spool"
    folder.mkdir()
    first, last = (json.dumps({"t": "exposure", **exposure(number)}).encode() for number in (1, 2))
    garbage = b'{"unit": "\xff\xfe"}\n\0\0\0\n'
    (folder / "1-dead.jsonl").write_bytes(first + b"\n" + garbage + last + b"\n")
    recorder = Recorder(folder, lambda: store)
    recorder.replay_orphans()
    assert rows(store, "exposures") == ["r1", "r2"]


def test_what_comes_after_the_end_is_refused_and_no_other_file_gets_it(tmp_path: Path) -> None:
    spool = Spool.create(tmp_path)
    spool.close(delete=False)
    other = os.open(tmp_path / "other", os.O_CREAT | os.O_RDWR)  # may have the same number
    for call in (lambda: spool.append(b"{}\n"), spool.sync):
        with pytest.raises(OSError, match="closed"):
            call()
    os.close(other)
    assert (tmp_path / "other").read_bytes() == b""


async def test_what_comes_in_the_last_moment_is_left_for_others(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outcome that was taken after all had been carried over, before the file was deleted."""
    recorder = Recorder(tmp_path / "spool", lambda: store)
    close = Spool.close

    def late(spool: Spool, **how: Any) -> None:
        spool.append(json.dumps({"t": "outcome", **outcome(1)}).encode() + b"\n")
        close(spool, **how)

    monkeypatch.setattr(Spool, "close", late)
    recorder.start()
    recorder.exposed(exposure(1))
    recorder.close()
    monkeypatch.undo()
    Recorder(tmp_path / "spool", lambda: store).replay_orphans()
    assert rows(store, "outcomes") == ["r1"]


def test_a_new_file_is_in_its_folder_before_what_it_holds_is_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Syncing a file says nothing of its name."""
    synced: list[Path] = []
    fsync = os.fsync

    def note(fd: int) -> None:
        synced.append(Path(f"/proc/self/fd/{fd}").readlink())
        fsync(fd)

    monkeypatch.setattr(spool_module.os, "fsync", note)
    spool = Spool.create(tmp_path)
    spool.append(b"{}\n")
    spool.sync()
    assert synced == [tmp_path]
    spool.sync()
    assert len(synced) == 1, "once for each new name"
    spool.drop(0, b"")
    spool.sync()
    assert synced == [tmp_path, tmp_path]


@pytest.mark.parametrize(("number", "is_refused"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_a_file_system_that_does_not_sync_folders_is_used_and_a_broken_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, is_refused: bool
) -> None:
    def refuses(fd: int) -> None:
        raise OSError(number, "no")

    spool = Spool.create(tmp_path)
    monkeypatch.setattr(spool_module.os, "fsync", refuses)
    for _ in range(2):
        if is_refused:
            with pytest.raises(OSError, match="no"):
                spool.sync()
        else:
            spool.sync()
