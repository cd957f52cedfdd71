"""The folder that travels with a queued job: a zip file that waits in the store until Ray takes it."""

from __future__ import annotations

import hashlib
import logging
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from seatrial.config.addresses import HOME_NAME
from seatrial.errors import UserError

OURS = (HOME_NAME,)
"""What never travels besides Ray's own list: a local stack's tokens and store."""
LARGEST_MB = 64
LARGEST_UNPACKED_MB = 1024
"""Of the files themselves: no more is read to find that the zip file is too large."""


@dataclass(frozen=True)
class Package:
    """A zip file and the digest of what is in it."""

    digest: str
    body: bytes


def pack(folder: Path) -> Package:
    """The files of ``folder`` as Ray would upload them: what `.gitignore` and `.rayignore` name is left out,
    and so are `.git`, environments, caches and the state of a local stack.

    The digest is of names and contents, so that the same files are the same package at any time.

    Raises:
        UserError: more than :data:`LARGEST_MB`, a link that leads out of the folder, or a file that cannot be
            read or has a name that no zip file takes.
    """
    quiet = logging.getLogger("seatrial.package")
    quiet.setLevel(logging.CRITICAL)
    try:
        return _packed(folder, quiet)
    except (OSError, ValueError) as error:  # a file that is not ours to read, or gone by now; its name
        raise UserError(
            f"--upload: {folder}: cannot be packed ({error}): name what cannot travel in .gitignore, "
            "or use --no-upload"
        ) from error


def _packed(folder: Path, quiet: logging.Logger) -> Package:
    from ray._private.runtime_env.packaging import create_package

    _look_through(folder, quiet)
    with tempfile.TemporaryDirectory() as place:
        target = Path(place) / "package.zip"
        create_package(str(folder), target, include_gitignore=True, excludes=_excludes(), logger=quiet)
        size_mb = target.stat().st_size / 2**20
        if size_mb > LARGEST_MB:
            raise _too_large(folder, size_mb)
        return Package(_digest(target), target.read_bytes())


def _look_through(folder: Path, quiet: logging.Logger) -> None:
    """Refuse what must not or cannot travel before anything is packed, in what Ray would pack."""
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    home, total_mb = folder.resolve(), 0.0

    def look(path: Path) -> None:
        nonlocal total_mb
        if path.is_symlink() and not _is_inside(path, home):
            raise UserError(
                f"--upload: {path}: a link out of {folder}, which would travel with the job: "
                "name it in .gitignore, or use --no-upload"
            )
        total_mb += path.stat().st_size / 2**20 if path.is_file() else 0.0
        if total_mb > LARGEST_UNPACKED_MB:
            raise _too_large(folder, total_mb)

    excludes = [_get_excludes(folder.absolute(), _excludes())]
    _dir_travel(folder.absolute(), excludes, look, include_gitignore=True, logger=quiet)


def _excludes() -> list[str]:
    from ray._private.ray_constants import get_runtime_env_default_excludes

    return [*get_runtime_env_default_excludes(), *OURS]


def _is_inside(link: Path, home: Path) -> bool:
    """Whether a link leads into ``home``, and not to a folder that it is in itself."""
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError):  # it leads nowhere, and is left out
        return True
    return target.is_relative_to(home) and not link.parent.resolve().is_relative_to(target)


def _too_large(folder: Path, size_mb: float) -> UserError:
    return UserError(
        f"--upload: {folder}: {size_mb:,.0f} MB: at most {LARGEST_MB} travel with a job: "
        "name data in .gitignore and read them from shared storage, or use --no-upload"
    )


def _digest(path: Path) -> str:
    total = hashlib.sha256()
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            content = hashlib.sha256(archive.read(name)).hexdigest()
            total.update(f"{name}\0{content}\n".encode())
    return total.hexdigest()
