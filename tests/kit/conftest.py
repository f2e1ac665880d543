"""A new architecture, written for a test."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvmarch.kit.write import Geometry, write_arch

ROOT = Path(__file__).parent.parent.parent


class Written:
    """A distribution that lies somewhere, found as if it were installed."""

    def __init__(self, folder, name):
        self.folder, self.name = folder, name
        known = folder / f"kvmarch_{name}.egg-info"
        known.mkdir()
        known.joinpath("PKG-INFO").write_text(
            f"Metadata-Version: 2.1\nName: kvmarch-{name}\nVersion: 0.1.0\n", "utf-8"
        )
        known.joinpath("entry_points.txt").write_text(
            f"[kvmarch]\n{name} = kvmarch_{name}\n", "utf-8"
        )

    def run(self, *words):
        """Run a module of Python beside the distribution."""
        paths = [str(self.folder), str(ROOT)]
        return subprocess.run(
            [sys.executable, "-m", *words],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


@pytest.fixture
def written(tmp_path):
    """Write a new architecture."""

    def make(name="demo", tier=5, **geometry):
        folder = tmp_path / f"kvmarch-{name}"
        write_arch(name, Geometry(**geometry), tier, folder, ())
        return Written(folder, name)

    return make
