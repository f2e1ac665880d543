"""Fixtures of the command line's tests: commands run on the toy alone."""

import pytest
from click.testing import CliRunner

from kvmarch.cli import command_line

cli = command_line()
SCENARIO = """
title = "a scenario"
tags = ["mine"]
[vm]
memory = [{ name = "ram", pages = 4, contents = [7, 7] }]
[[task]]
name = "vmm"
steps = ["slot id=0 memory=ram gfn=0", "read gfn=0", "ksm_merge memory=ram"]
[[column]]
name = "callback"
show = "callback"
event = "change_pte_done"
[[expect]]
until = "v6.10"
values = { callback = "present" }
"""


@pytest.fixture
def loaded(monkeypatch):
    """Replace what the loader gives."""

    def make(plugins):
        monkeypatch.setattr("kvmarch.plugins.load", lambda **_how: plugins)

    return make


@pytest.fixture
def kvmarch(loaded, toys, tmp_path, monkeypatch):
    """Run a command line in an empty folder, with the toy installed."""
    loaded(toys)
    monkeypatch.chdir(tmp_path)

    def run(*args):
        return CliRunner().invoke(cli, args, catch_exceptions=False)

    return run


@pytest.fixture
def own(tmp_path):
    """Write a scenario file of the user's own, with something in it replaced."""

    def write(old="", new="", more=""):
        path = tmp_path / "own.toml"
        text = SCENARIO.replace(old, new) if old else SCENARIO
        path.write_text(text + more, "utf-8")
        return str(path)

    return write
