"""Scenario files as tests: ``*.kvmarch.toml``, an item per kernel or verdict."""

__all__ = ["SUFFIX", "ScenarioFile"]

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvmarch.changes import find_release
from kvmarch.errors import KvmarchError
from kvmarch.plugins import Loaded, Plugins
from kvmarch.scenarios.cells import Cell, cells_of
from kvmarch.scenarios.compare import Choose
from kvmarch.scenarios.file import load
from kvmarch.scenarios.records import Scenario
from kvmarch.scenarios.records import Verdict as Expected
from kvmarch.testing.meet import (
    NotMetError,
    expects_by_changes,
    meet_expects,
    meet_verdicts,
)

SUFFIX = ".kvmarch.toml"


class ScenarioFile(pytest.File):
    """One scenario file.

    :param plugins: the architectures that are there.
    :param kernels: releases to try instead of the usual ones.
    """

    plugins: Plugins
    kernels: tuple[str, ...] = ()
    archs: tuple[str, ...] = ()

    def collect(self) -> Iterator[pytest.Item]:
        """Yield an item for each architecture with expectations, and each verdict."""
        try:
            scenario = load(self.path)
            scenario = replace(scenario, name=self.path.name.removesuffix(SUFFIX))
            items = [*self._sequential(scenario), *self._verdicts(scenario)]
        except KvmarchError as error:
            raise self.CollectError(str(error)) from None
        if not items:
            raise self.CollectError(
                f"{self.path}: expects nothing: neither [[expect]] nor [[verdict]]"
            )
        yield from items

    def _meant(self) -> list[Loaded]:
        there = self.plugins.loaded.values()
        return [arch for arch in there if not self.archs or arch.name in self.archs]

    def _sequential(self, scenario: Scenario) -> Iterator[pytest.Item]:
        if scenario.expects and not scenario.columns:
            raise KvmarchError(f"{self.path}: [[expect]] needs columns")
        for (plus, minus), expects in expects_by_changes(scenario).items():
            more = "".join((*(f"+{c}" for c in plus), *(f"-{c}" for c in minus)))
            for arch in self._meant():
                if not any(expect.arch in {"", arch.name} for expect in expects):
                    continue
                choose = Choose((arch.name,), self.kernels, plus, minus)
                name = f"{arch.name}{more}"
                yield ExpectItem.make(self, name, scenario, choose, self.plugins)
            yield from self._absent(
                {expect.arch for expect in expects if expect.arch}, more
            )

    def _verdicts(self, scenario: Scenario) -> Iterator[pytest.Item]:
        there = self.plugins.loaded
        kept: list[Expected] = []
        for row in scenario.verdicts:
            yield from self._absent(set(row.arch), row.kernel)
            known = tuple(name for name in row.arch if name in there)
            if known or not row.arch:
                kept.append(replace(row, arch=known))
        wanted = {find_release(name) for name in self.kernels}
        here = replace(scenario, verdicts=tuple(kept))
        if not kept:
            return
        for cell, expected in cells_of(here, self.plugins, Choose()):
            if self.archs and cell.arch.name not in self.archs:
                continue
            if not wanted or cell.release in wanted:
                yield VerdictItem.make(self, cell, expected, self.plugins)

    def _absent(self, names: set[str], more: str) -> Iterator[pytest.Item]:
        """Yield an item that is skipped for each architecture that is not there."""
        for name in sorted(names - self.plugins.loaded.keys()):
            if not self.archs or name in self.archs:
                item = AbsentItem.from_parent(self, name=f"{name}-{more}".strip("-"))
                why = f"architecture {name} is not installed"
                item.add_marker(pytest.mark.skip(reason=why))
                yield item


class _Item(pytest.Item):
    """What the items have in common: a failure is text, not a traceback."""

    def repr_failure(self, excinfo: Any, style: Any = None) -> Any:
        """Return what people see when the item fails."""
        if isinstance(excinfo.value, NotMetError | KvmarchError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int, str]:
        """Return where the item is, and what it is called."""
        return self.path, 0, f"{self.path.name}: {self.name}"


class AbsentItem(_Item):
    """An expectation of an architecture that is not installed."""

    def runtest(self) -> None:
        """Do nothing: the item is always skipped."""


class ExpectItem(_Item):
    """The sequential expectations of one architecture."""

    scenario: Scenario
    choose: Choose
    plugins: Plugins

    @classmethod
    def make(
        cls,
        parent: ScenarioFile,
        name: str,
        scenario: Scenario,
        choose: Choose,
        plugins: Plugins,
    ) -> "ExpectItem":
        """Return the item."""
        item: ExpectItem = cls.from_parent(parent, name=name)
        item.scenario, item.choose, item.plugins = scenario, choose, plugins
        return item

    def runtest(self) -> None:
        """Compare over the releases; each expectation must hold."""
        meet_expects(self.scenario, self.plugins, self.choose)


class VerdictItem(_Item):
    """The verdicts of one kernel: every interleaving is searched."""

    cell: Cell
    expected: tuple[Expected, ...]
    plugins: Plugins

    @classmethod
    def make(
        cls,
        parent: ScenarioFile,
        cell: Cell,
        expected: tuple[Expected, ...],
        plugins: Plugins,
    ) -> "VerdictItem":
        """Return the item."""
        name = cell.where.partition("@")[2]
        item: VerdictItem = cls.from_parent(parent, name=name)
        item.cell, item.expected, item.plugins = cell, expected, plugins
        return item

    def runtest(self) -> None:
        """Search; each property must be lost as often as is expected."""
        meet_verdicts(self.cell, self.expected, self.plugins)
