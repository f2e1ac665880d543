"""Fixtures of tests that say themselves which machine they want, and of commands."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kvmarch.changes import Kernel, Release
    from kvmarch.plugins import Loaded, Plugins
    from kvmarch.testing.bench import Bench


@pytest.fixture
def kvmarch_link(kvmarch_plugin: Loaded) -> Callable[..., Kernel]:
    """Assemble kernels: ``kvmarch_link((6, 1), plus=["…"], minus=["…"])``.

    Without a release it is the newest.
    """
    from kvmarch import plugins
    from kvmarch.changes import RELEASES

    def link(
        release: Release = RELEASES[-1],
        plus: tuple[str, ...] = (),
        minus: tuple[str, ...] = (),
    ) -> Kernel:
        return plugins.link(kvmarch_plugin, release, plus, minus)

    return link


@pytest.fixture
def kvmarch_bench(
    kvmarch_plugin: Loaded, kvmarch_link: Callable[..., Kernel]
) -> Iterator[Callable[..., Bench]]:
    """Boot machines: ``kvmarch_bench((6, 1), vcpus=2, page_size=4096)``.

    Each has 16 pages of memory, or ``pages``, and no memslot; with ``thp`` the host has
    huge pages there. What is no argument is an option of the architecture.
    """
    from kvmarch.changes import RELEASES
    from kvmarch.testing.bench import Bench

    made: list[Bench] = []

    def boot(
        release: Release = RELEASES[-1],
        plus: tuple[str, ...] = (),
        minus: tuple[str, ...] = (),
        *,
        pages: int = 16,
        vcpus: int = 1,
        thp: bool = False,
        **options: Any,
    ) -> Bench:
        given = {name: str(value) for name, value in options.items()}
        settled = kvmarch_plugin.info.settle(release, given)
        k = kvmarch_link(release, plus, minus)
        one = Bench(k, settled, pages, thp=thp, vcpus=vcpus)
        made.append(one)
        return one

    yield boot
    for one in made:
        one.close()


@pytest.fixture
def kvmarch_compare(
    kvmarch_plugin: Loaded, kvmarch_plugins: Plugins
) -> Callable[..., dict[str, dict[str, Any]]]:
    """Compare a scenario: ``kvmarch_compare("ksm_cow", "v6.1,v7.2", mmu="tdp")``.

    Returns the rows by release. ``with_`` and ``without`` are changes, everything else
    is an option of the architecture.
    """
    from kvmarch.errors import KvmarchError
    from kvmarch.scenarios.file import find, load
    from kvmarch.testing.cases import Wanted
    from kvmarch.testing.golden import rows_of

    def compare(scenario: str, kernel: str, **given: Any) -> dict[str, dict[str, Any]]:
        __tracebackhide__ = True
        mark = {**given, "arch": kvmarch_plugin.name, "kernel": kernel}
        try:
            choose = Wanted.of([mark]).choose()
            path = find(scenario, kvmarch_plugins.scenario_folders())
            rows = rows_of(load(path), kvmarch_plugins, choose)
            return {row["kernel"]: row for row in rows}
        except KvmarchError as error:
            failure = str(error)
        pytest.fail(failure, pytrace=False)

    return compare


@pytest.fixture
def kvmarch_run() -> Callable[..., str]:
    """Run a command, as people do: ``kvmarch_run("formats", "demo")``.

    Returns what it printed. The exit status must be 0, or ``status``.
    """

    def run(*words: str, status: int = 0) -> str:
        __tracebackhide__ = True
        ran = subprocess.run(  # noqa: S603 - the command is our own
            [sys.executable, "-m", "kvmarch", *words],
            capture_output=True,
            text=True,
            check=False,
        )
        if ran.returncode != status:
            command = " ".join(["kvmarch", *words])
            said = ran.stdout + ran.stderr
            pytest.fail(
                f"{command}: status {ran.returncode}, not {status}\n{said}",
                pytrace=False,
            )
        return ran.stdout

    return run
