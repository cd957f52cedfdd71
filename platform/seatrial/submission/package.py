"""The folder that travels with a queued job: a zip file that waits in the store until Ray takes it."""

from __future__ import annotations

import hashlib
import logging
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from seatrial.errors import UserError

LARGEST_MB = 64


@dataclass(frozen=True)
class Package:
    """A zip file and the digest of what is in it."""

    digest: str
    body: bytes


def pack(folder: Path) -> Package:
    """The files of ``folder`` as Ray would upload them: what `.gitignore` and `.rayignore` name is left out.

    The digest is of names and contents, so that the same files are the same package at any time.

    Raises:
        UserError: more than :data:`LARGEST_MB`.
    """
    from ray._private.runtime_env.packaging import create_package

    with tempfile.TemporaryDirectory() as place:
        target = Path(place) / "package.zip"
        quiet = logging.getLogger("seatrial.package")
        quiet.setLevel(logging.WARNING)
        create_package(str(folder), target, include_gitignore=True, logger=quiet)
        size_mb = target.stat().st_size / 2**20
        if size_mb > LARGEST_MB:
            raise UserError(
                f"--upload: {folder}: {size_mb:,.0f} MB: at most {LARGEST_MB} travel with a job: "
                "name data in .gitignore and read them from shared storage, or use --no-upload"
            )
        return Package(_digest(target), target.read_bytes())


def _digest(path: Path) -> str:
    total = hashlib.sha256()
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            content = hashlib.sha256(archive.read(name)).hexdigest()
            total.update(f"{name}\0{content}\n".encode())
    return total.hexdigest()
