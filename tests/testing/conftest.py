"""Runs of pytest on files that a test writes."""

import os
import re
import subprocess
import sys

import pytest


class Project:
    """A folder of tests that use kvmarch, and runs of pytest there."""

    def __init__(self, folder):
        self.folder = folder

    def write(self, name, text):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        return path

    def pytest(self, *words, **environment):
        """Run pytest; return its outcome, with counts and output."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words],
            cwd=self.folder,
            env={**kept, **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return Ran(run.returncode, run.stdout + run.stderr)


class Ran:
    """What a run of pytest said."""

    def __init__(self, status, text):
        self.status, self.text = status, text
        self.counts = {
            name: int(number)
            for number, name in re.findall(
                r"(\d+) (passed|failed|skipped|error)", text.splitlines()[-1]
            )
        }


@pytest.fixture
def project(tmp_path):
    """A folder for tests, with a configuration of its own."""
    made = Project(tmp_path)
    made.write("pytest.ini", "[pytest]\nfilterwarnings = error\n")
    return made
