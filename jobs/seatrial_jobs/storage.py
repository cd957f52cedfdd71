"""Where a job keeps its checkpoints: a directory or an object store, through pyarrow."""

from __future__ import annotations

import errno
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seatrial.errors import RetryableError, UserError

CHUNK_BYTES = 1 << 20
# How AWS's SDK, through pyarrow, and botocore tell of what no repetition mends.
HOPELESS = re.compile(
    r"HTTP status 40[0134]|ACCESS_DENIED|NO_SUCH_BUCKET|INVALID_|SIGNATURE|AccessDenied|InvalidAccessKey"
)

LASTING = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}


@dataclass(frozen=True)
class Storage:
    """Files below one place. Names are relative POSIX paths; instances travel to other processes."""

    uri: str
    """Absolute directory, or `s3://bucket/prefix`."""

    @classmethod
    def of(cls, setting: str, root: Path) -> Storage:
        """The place that `run.storage` names; relative directories start at ``root``.

        Raises:
            UserError: no file system answers for it.
        """
        uri = setting if "://" in setting else str((root / Path(setting).expanduser()).absolute())
        place, mark, query = uri.partition("?") if "://" in uri else (uri, "", "")
        storage = cls(f"{place.rstrip('/')}{mark}{query}")
        try:
            storage.connect()
        except (OSError, ValueError) as error:
            from seatrial_jobs.objects import without_keys

            shown = without_keys(setting)
            reason = str(error).splitlines()[0].replace(storage.uri, shown)
            raise UserError(
                f"run.storage: {shown}: cannot be opened ({reason}): give a directory or s3://bucket/prefix"
            ) from error
        return storage

    def below(self, name: str) -> Storage:
        """The place called ``name`` inside this one."""
        scheme, mark, rest = self.uri.partition("?")
        return Storage(f"{scheme}/{name}{mark}{rest}")

    def connect(self) -> tuple[Any, str]:
        """The pyarrow file system and the path of this place in it."""
        from seatrial_jobs.objects import open_uri

        return open_uri(self.uri)

    def read(self, name: str) -> bytes | None:
        """The bytes of a file; ``None`` when there is none."""
        filesystem, path = self.connect()
        try:
            with filesystem.open_input_stream(f"{path}/{name}") as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Put a file, whole or not at all."""
        filesystem, path = self.connect()
        target = f"{path}/{name}"
        filesystem.create_dir(target.rpartition("/")[0], recursive=True)
        if filesystem.type_name != "local":  # an object appears when its upload is complete
            with filesystem.open_output_stream(target) as stream:
                stream.write(content)
            return
        with filesystem.open_output_stream(f"{target}.partial") as stream:
            stream.write(content)
        filesystem.move(f"{target}.partial", target)

    def read_json(self, name: str) -> Any:
        """The value of a JSON file; ``None`` when there is none."""
        content = self.read(name)
        return None if content is None else json.loads(content)

    def write_json(self, name: str, value: object) -> None:
        """Put a JSON file, whole or not at all."""
        self.write(name, json.dumps(value, indent=2, sort_keys=True).encode() + b"\n")

    def put(self, local: Path, name: str) -> str:
        """Copy a local file here, in pieces, and return its SHA-256."""
        filesystem, path = self.connect()
        target = f"{path}/{name}"
        filesystem.create_dir(target.rpartition("/")[0], recursive=True)
        digest = hashlib.sha256()
        with local.open("rb") as source, filesystem.open_output_stream(target) as stream:
            for piece in _pieces(source):
                digest.update(piece)
                stream.write(piece)
        return digest.hexdigest()

    def fetch(self, name: str, local: Path) -> str:
        """Copy a file from here to ``local`` and return its SHA-256."""
        filesystem, path = self.connect()
        digest = hashlib.sha256()
        with filesystem.open_input_stream(f"{path}/{name}") as source, local.open("wb") as target:
            for piece in _pieces(source):
                digest.update(piece)
                target.write(piece)
        return digest.hexdigest()

    def folders(self) -> list[str]:
        """Names of the folders directly below, sorted."""
        import pyarrow.fs

        filesystem, path = self.connect()
        found = filesystem.get_file_info(pyarrow.fs.FileSelector(path, allow_not_found=True))
        return sorted(info.base_name for info in found if info.type == pyarrow.fs.FileType.Directory)

    def clear(self) -> None:
        """Delete this place and everything in it."""
        import pyarrow.fs

        filesystem, path = self.connect()
        if filesystem.get_file_info(path).type == pyarrow.fs.FileType.Directory:
            filesystem.delete_dir(path)


def may_pass(error: Exception) -> bool:
    """Whether the same request may succeed a minute later: a full disk, a lost mount, a server away."""
    if not isinstance(error, OSError):
        return isinstance(error, RetryableError)
    return error.errno not in LASTING and not HOPELESS.search(str(error))


@contextmanager
def answering(storage: Storage) -> Iterator[None]:
    """Say in one line what is wrong with `run.storage`.

    Raises:
        UserError: it can never be used: a path below a file, no permission, no such bucket.
        RetryableError: it does not answer this time.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        place = storage.uri.partition("?")[0]
        # A local file system gives a number; an object store's answer is told in words.
        if isinstance(error, ValueError) or error.errno is not None or HOPELESS.search(reason):
            raise UserError(
                f"run.storage: {place}: cannot be used ({reason}): give a place that workers may write to"
            ) from error
        raise RetryableError(f"run.storage: {place}: does not answer ({reason}): try again") from error


def _pieces(source: Any) -> Iterator[bytes]:
    while piece := source.read(CHUNK_BYTES):
        yield piece
