"""Fixtures of the core's tests: the toy architecture, and machines that run it."""

import importlib
import signal
import sys
from pathlib import Path

import pytest

from kvmarch import plugins
from kvmarch.changes import Kernel
from kvmarch.machine.world import World
from kvmarch.scenarios import play as player
from kvmarch.scenarios.file import load
from kvmarch.testing.bench import Bench, Driver

sys.path.insert(0, str(Path(__file__).parent))
from altering import alter

THIRD_PARTY = str(Path(__file__).parent / "third_party")


def pytest_addoption(parser):
    parser.addoption(
        "--promote",
        action="store_true",
        help="write what commands print now into the documents",
    )
    parser.addoption(
        "--lab",
        action="store_true",
        help="boot real kernels, too: needs QEMU, cross compilers, apt and minutes",
    )


def pytest_configure(config):
    """Let signals do what they do to a command that a user starts.

    Who runs the tests in the background, or under nohup, has them ignored, and every
    command that a test starts would inherit that.
    """
    for number, usual in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGHUP, signal.SIG_DFL),
        (signal.SIGTERM, signal.SIG_DFL),
    ):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, usual)


def pytest_collection_modifyitems(config, items):
    """Leave out what boots kernels, unless it is asked for."""
    if config.getoption("--lab"):
        return
    reason = pytest.mark.skip(reason="boots real kernels; asked for with --lab")
    for item in items:
        if "lab" in item.keywords and item.get_closest_marker("lab"):
            item.add_marker(reason)


def pytest_make_parametrize_id(config, val, argname):
    """Write releases as people do."""
    known = argname == "release" and isinstance(val, tuple)
    return f"v{val[0]}.{val[1]}" if known else None


@pytest.fixture
def toy_module(monkeypatch):
    """The toy architecture's module."""
    monkeypatch.syspath_prepend(THIRD_PARTY)
    return importlib.import_module("kvmarch_toy")


@pytest.fixture
def altered(toy_module):
    """Return the toy with names exchanged; None takes one out."""
    return lambda **names: alter(toy_module, names)


@pytest.fixture
def toy(toy_module):
    """The toy architecture, checked."""
    return plugins.check("toy", toy_module, "kvmarch-toy", "1.0")


@pytest.fixture
def toys(toy):
    """What the loader would give if the toy were all there is."""
    return plugins.Plugins([toy], [])


@pytest.fixture
def driver():
    """An empty world to run steps in."""
    made = Driver(World())
    yield made
    made.close()


@pytest.fixture
def link(toy):
    """Assemble a toy kernel; ``fixed`` replaces operations of it."""

    def make(release=(6, 1), plus=(), minus=(), **replaced):
        k = plugins.link(toy, release, plus, minus)
        if not replaced:
            return k
        return Kernel(k.release, k.arch, k.applied, {**k.choices, **replaced})

    return make


@pytest.fixture
def bench_class():
    """The class of machines that tests drive."""
    return Bench


@pytest.fixture
def bench(toy, link):
    """Boot a toy machine of a release."""
    made = []

    def make(release=(6, 1), plus=(), minus=(), pages=16, replaced=None, **options):
        k = link(release, plus, minus, **(replaced or {}))
        one = Bench(k, toy.info.settle(release, {}), pages, **options)
        made.append(one)
        return one

    yield make
    for one in made:
        one.close()


@pytest.fixture
def scenario(tmp_path):
    """Write a scenario file and load it."""

    def make(text, name="test"):
        path = tmp_path / f"{name}.toml"
        path.write_text(text, "utf-8")
        return load(path)

    return make


@pytest.fixture
def play(toy, link, scenario):
    """Play a scenario, given as text or loaded, on the toy."""

    def make(what, release=(6, 1), plus=(), minus=(), **options):
        loaded = scenario(what) if isinstance(what, str) else what
        k = link(release, plus, minus)
        return player.play(loaded, k, toy.info.settle(release, {}), **options)

    return make
