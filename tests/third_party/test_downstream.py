"""A project downstream uses kvmarch as a stranger does: wheels, a new environment.

Nothing of this repository is on its path. It needs a package index for pytest.
"""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TOP = HERE.parent.parent
SOURCES = ("LICENSE", "README.md", "pyproject.toml", "kvmarch", "plugins")
"""What kvmarch's wheel is built from, with ``pytest_kvmarch``."""


class Stranger:
    """An environment, and a project in it."""

    def __init__(self, folder):
        self.python = str(folder / "venv" / "bin" / "python")
        self.project = folder / "downstream"

    def run(self, *words, status=0):
        """Run Python with these words; return what it said."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PYTHON", "PYTEST"))
        }
        ran = subprocess.run(
            [self.python, *words],
            cwd=self.project,
            env=kept,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert ran.returncode == status, ran.stdout + ran.stderr
        return ran.stdout + ran.stderr


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """Build the wheels and install them into a new environment."""
    folder = tmp_path_factory.mktemp("stranger")
    plain = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    source = folder / "kvmarch"
    source.mkdir()
    for name in (*SOURCES, "pytest_kvmarch"):
        if (TOP / name).is_dir():
            shutil.copytree(TOP / name, source / name, ignore=plain)
        else:
            shutil.copy(TOP / name, source / name)
    toy = folder / "toy"
    shutil.copytree(HERE / "kvmarch_toy", toy / "kvmarch_toy", ignore=plain)
    shutil.copy(HERE / "pyproject.toml", toy)
    shutil.copytree(HERE / "downstream", folder / "downstream", ignore=plain)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    wheels = folder / "wheels"
    build = [*pip, "wheel", "--no-deps", "-w", str(wheels), str(source), str(toy)]
    subprocess.run(build, check=True, timeout=200, capture_output=True)
    venv.create(folder / "venv", with_pip=False)
    made = Stranger(folder)
    install = [*pip, "--python", made.python, "install"]
    install += [*map(str, wheels.glob("*.whl")), "pytest>=9", "pytest-xdist"]
    subprocess.run(install, check=True, timeout=200, capture_output=True)
    return made


def test_nothing_of_the_repository_is_on_the_path(stranger):
    code = "import kvmarch, sys; print(kvmarch.__file__, *sys.path, sep='\\n')"
    said = stranger.run("-c", code)

    assert str(TOP) not in said
    assert "site-packages" in said.splitlines()[0]


def test_its_tests_pass_one_by_one_and_shared_out(stranger):
    alone = stranger.run("-m", "pytest", "-q", "-rs", "-p", "no:xdist")
    shared = stranger.run("-m", "pytest", "-q", "-n", "2")

    assert "architecture vax is not installed" in alone
    assert (
        alone.splitlines()[-1].split(" in ")[0]
        == (shared.splitlines()[-1].split(" in ")[0])
    )


def test_its_golden_files_are_written_by_several_processes(stranger):
    folder = stranger.project / "tests" / "golden"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for path in folder.iterdir():
        path.unlink()

    said = stranger.run(
        "-m", "pytest", "-q", "-n", "2", "--kvmarch-update", "-k", "change"
    )
    assert said.count("kvmarch: written: ") == 1
    stranger.run("-m", "pytest", "-q", "-n", "2", "--kvmarch-update")

    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_plugin_of_the_project_reaches_its_tier(stranger):
    said = stranger.run("-m", "kvmarch", "check-plugin", "toy", "-k", "v5.10,v6.12")

    assert "toy reaches tier 5" in said


def test_pytest_that_is_missing_is_told(stranger):
    code = (
        "import sys; sys.modules['pytest'] = None\n"
        "from kvmarch.cli import main; sys.argv[1:] = ['check-plugin', 'toy']; main()"
    )

    said = stranger.run("-c", code, status=2)

    assert said.startswith("kvmarch: check-plugin needs pytest: install it")
