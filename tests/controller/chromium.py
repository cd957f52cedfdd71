"""A headless Chromium, from Debian's packages."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

INSTALL = "install Debian's package chromium: apt-get install -y --no-install-recommends chromium"


def program() -> str:
    """Path of the browser; as root it is installed when it is missing."""
    if shutil.which("chromium") is None and os.geteuid() == 0 and shutil.which("apt-get"):
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        packages = ["chromium", "fonts-dejavu-core"]
        for command in (
            ["apt-get", "update", "-q"],
            ["apt-get", "install", "-yq", "--no-install-recommends", *packages],
        ):
            subprocess.run(command, env=quiet, check=True, timeout=600, stdout=subprocess.DEVNULL)
    found = shutil.which("chromium")
    if found is None:
        pytest.fail(f"no Chromium: {INSTALL}")
    return found


@contextmanager
def browser() -> Iterator[Any]:
    """A browser of playwright's."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        made = play.chromium.launch(executable_path=program(), args=["--no-sandbox"])
        try:
            yield made
        finally:
            made.close()
