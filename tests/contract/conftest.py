"""One machine per installed architecture, release and kind of guest tables."""

import importlib.util
from pathlib import Path
from typing import NamedTuple

import pytest

from kvmarch import plugins
from kvmarch.changes import COMPARED, show_release
from kvmarch.plugins import Loaded

SOME = ((3, 16), (4, 12), (5, 4), (5, 10), (5, 13), (5, 15), (6, 1), (6, 9), (7, 2))
"""Releases at which each property of the contract is tried."""


class Deviation(NamedTuple):
    """What a kernel does otherwise than the contract has it, and who says so.

    :param until: the first release that keeps the rule.
    """

    rule: str
    arch: str
    source: str
    mmu: str = ""
    until: tuple[int, int] = (99, 0)


DEVIATIONS = (
    Deviation("zaps-deleted-slots", "ppc", "ppc facts 2 and L1", "pr"),
    Deviation("zaps-deleted-slots", "ppc", "ppc facts 2 and L1", "e500"),
    Deviation("flushes-only-what-goes", "mips", "mips facts 2"),
    Deviation("flushes-only-what-goes", "ppc", "ppc facts 2", "e500"),
    Deviation("logs-writes", "ppc", "ppc facts 6", "e500"),
    Deviation("logs-only-writes", "ppc", "ppc facts 5", "pr"),
    Deviation("maps-nothing-before-end", "arm64", "generic facts 2.5", "", (6, 10)),
    Deviation("maps-nothing-before-end", "mips", "generic facts 2.5", "", (6, 10)),
    Deviation("forgets-mmio", "x86", "generic facts 3, v3.17", "", (3, 17)),
)
"""The exceptions. Each is tested to be one, as far as one run can show it."""


class Case(NamedTuple):
    """One kernel to test: ``mmu`` is empty where there is one kind of tables."""

    arch: Loaded
    release: tuple[int, int]
    mmu: str

    def __str__(self):
        parts = (self.arch.name, show_release(self.release), self.mmu)
        return "-".join(filter(None, parts))

    def keeps(self, rule):
        """Return whether the kernel keeps a rule of the contract."""
        return not any(
            (rule, self.arch.name) == (row.rule, row.arch)
            and row.mmu in {"", self.mmu}
            and self.release < row.until
            for row in DEVIATIONS
        )

    def options(self):
        """Return the machine's options."""
        given = {"mmu": self.mmu} if self.mmu else {}
        return self.arch.info.settle(self.release, given)


def architectures():
    """Return what is installed, and the toy."""
    file = Path(__file__).parent.parent / "third_party" / "kvmarch_toy" / "__init__.py"
    spec = importlib.util.spec_from_file_location("kvmarch_toy_of_contract", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    toy = plugins.check("toy", module, "kvmarch-toy", "1.0")
    return [*plugins.load().loaded.values(), toy]


def cases(releases):
    """Return every kernel of some releases that an architecture has."""
    return [
        Case(arch, release, mmu)
        for arch in architectures()
        for release in releases
        if arch.info.first <= release
        for mmu in (
            arch.info.options["mmu"].available(release)
            if "mmu" in arch.info.options
            else ("",)
        )
    ]


def pytest_generate_tests(metafunc):
    """Try ``case`` at some releases, ``compared`` at all that comparisons show."""
    for name, releases in (("case", SOME), ("compared", COMPARED)):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, cases(releases), ids=str)


@pytest.fixture
def one(case, bench_class):
    """A machine of the case, with a slot of 16 pages at gfn 0."""
    k = plugins.link(case.arch, case.release)
    made = bench_class(k, case.options(), 16)
    assert made.slot() == 0
    yield made
    for actor in made.actors:
        actor.close()
