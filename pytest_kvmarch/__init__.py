"""The pytest plugin of kvmarch: machines of every architecture as fixtures.

It is a package of its own because pytest loads it in every run of a Python in which
kvmarch is installed: nothing of kvmarch is imported before a test asks for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_kvmarch.machines import kvmarch_bench as kvmarch_bench
from pytest_kvmarch.machines import kvmarch_compare as kvmarch_compare
from pytest_kvmarch.machines import kvmarch_link as kvmarch_link
from pytest_kvmarch.machines import kvmarch_run as kvmarch_run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kvmarch.plugins import Plugins
    from kvmarch.testing.bench import Bench
    from kvmarch.testing.cases import Case, Wanted

_LOADED = pytest.StashKey["Plugins"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what the command line may say."""
    group = parser.getgroup("kvmarch", "KVM's guest memory, on every architecture")
    group.addoption(
        "--kvmarch-arch",
        metavar="NAMES",
        default="",
        help="run tests that use kvmarch on these architectures only",
    )
    group.addoption(
        "--kvmarch-kernel",
        metavar="RELEASES",
        default="",
        help="run tests that use kvmarch on these releases, such as v5.4,v6.12",
    )
    group.addoption(
        "--kvmarch-update",
        action="store_true",
        help="write the golden files of tests that use assert_matches",
    )


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Add the hook with which a conftest.py brings architectures of its own."""
    from pytest_kvmarch import hooks

    pluginmanager.add_hookspecs(hooks)


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark."""
    config.addinivalue_line(
        "markers",
        "kvmarch(arch=, kernel=, tier=, with_=, without=, **options): on which "
        "architectures, releases and machines a test of kvmarch runs",
    )


def installed(config: pytest.Config) -> Plugins:
    """Return the architectures: what is installed, and what conftest.py files bring."""
    if _LOADED not in config.stash:
        from kvmarch import plugins

        own = [a for row in config.hook.pytest_kvmarch_architectures() for a in row]
        found = plugins.load()
        loaded = [*found.loaded.values(), *own]
        config.stash[_LOADED] = plugins.Plugins(loaded, found.refused)
    return config.stash[_LOADED]


def pytest_collect_file(
    file_path: Path, parent: pytest.Collector
) -> pytest.Collector | None:
    """Collect scenario files whose names end in ``.kvmarch.toml``."""
    if not file_path.name.endswith(".kvmarch.toml"):
        return None
    from kvmarch.testing.cases import words
    from kvmarch.testing.collect import ScenarioFile

    file: ScenarioFile = ScenarioFile.from_parent(parent, path=file_path)
    file.plugins = installed(parent.config)
    file.kernels = words(parent.config.getoption("--kvmarch-kernel"))
    file.archs = words(parent.config.getoption("--kvmarch-arch"))
    return file


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test on every kernel, plugin or scenario that it asks for."""
    wants = {name for name in _PARAMETERS if name in metafunc.fixturenames}
    if not wants:
        return
    from kvmarch.errors import KvmarchError
    from kvmarch.testing.cases import Wanted

    there = installed(metafunc.config)
    marks = [dict(m.kwargs) for m in metafunc.definition.iter_markers("kvmarch")]
    try:
        wanted = Wanted.of([_of_command_line(metafunc.config, marks), *marks])
        rows = {name: _PARAMETERS[name](wanted, there) for name in sorted(wants)}
    except (KvmarchError, TypeError) as error:
        text = f"{metafunc.definition.nodeid}: {error}"
        raise pytest.Collector.CollectError(text) from None
    for name, values in rows.items():
        metafunc.parametrize(name, values or [_nothing(name, wanted)])


def _nothing(name: str, wanted: Wanted) -> Any:
    """Return what stands for nothing to test: a test that is skipped, and says why."""
    what = name.removeprefix("kvmarch_")
    tier = f" of an architecture that reaches tier {wanted.tier}"
    reason = f"there is no {what}{tier if wanted.tier <= 5 else ' that was asked for'}"
    return pytest.param(None, marks=[pytest.mark.skip(reason=reason)], id="none")


def _cases(wanted: Wanted, there: Plugins) -> list[Any]:
    from kvmarch.testing.cases import cases

    skip = pytest.mark.skip
    return [
        pytest.param(
            case,
            marks=[skip(reason=case.absent)] if case.absent else [],
            id=str(case),
        )
        for case in cases(wanted, there)
    ]


def _plugins(wanted: Wanted, there: Plugins) -> list[Any]:
    from kvmarch.testing.cases import architectures

    return [pytest.param(arch, id=arch.name) for arch in architectures(wanted, there)]


def _scenarios(wanted: Wanted, there: Plugins) -> list[Any]:
    from kvmarch.testing.cases import architectures
    from kvmarch.testing.own import own_scenarios

    return [
        pytest.param(own, id=own.name)
        for arch in architectures(wanted, there)
        for own in own_scenarios(arch, there)
    ]


def _recordings(wanted: Wanted, there: Plugins) -> list[Any]:
    from kvmarch.testing.cases import architectures
    from kvmarch.testing.own import own_recordings

    return [
        pytest.param(path, id=path.stem)
        for arch in architectures(wanted, there)
        for path in own_recordings(arch)
    ]


_PARAMETERS = {
    "kvmarch_case": _cases,
    "kvmarch_plugin": _plugins,
    "kvmarch_recording": _recordings,
    "kvmarch_scenario": _scenarios,
}
"""What tests are run on, by the name of the argument."""


def _of_command_line(
    config: pytest.Config, marks: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return what the command line decides.

    Architectures of the command line are those among the test's own.
    """
    from kvmarch.testing.cases import words

    given: dict[str, Any] = {}
    if config.getoption("--kvmarch-kernel"):
        given["kernel"] = config.getoption("--kvmarch-kernel")
    names = words(config.getoption("--kvmarch-arch"))
    if names:
        own = next((words(m["arch"]) for m in marks if m.get("arch")), names)
        given["arch"] = tuple(name for name in names if name in own)
        if not given["arch"]:
            given = {"arch": own, "tier": 99}
    return given


@pytest.fixture
def kvmarch_plugins(request: pytest.FixtureRequest) -> Plugins:
    """Return all architectures that are there."""
    return installed(request.config)


@pytest.fixture
def kvmarch_boot(kvmarch_case: Case) -> Iterator[Any]:
    """Boot machines of the case: ``kvmarch_boot(pages=16, vcpus=1)``.

    Each has its memory in memslot 0, from gfn 0 on.
    """
    from kvmarch.testing.bench import Bench

    made: list[Bench] = []

    def boot(pages: int = 16, **boot_options: Any) -> Bench:
        one = Bench(kvmarch_case.link(), kvmarch_case.options(), pages, **boot_options)
        made.append(one)
        errno = one.slot()
        assert errno == 0, f"memslot 0 is refused: errno {errno}"
        return one

    yield boot
    for one in made:
        one.close()


@pytest.fixture
def kvm(kvmarch_boot: Any) -> Bench:
    """Boot a machine of the case, with 16 pages of memory in memslot 0."""
    one: Bench = kvmarch_boot()
    return one


@pytest.fixture
def assert_matches(request: pytest.FixtureRequest) -> Any:
    """Compare a scenario with its golden file: ``assert_matches("change_pte")``.

    A scenario is the name of one, or a path from the test's folder. Architectures,
    releases, changes and options are those of the mark ``kvmarch``.
    """
    from kvmarch.errors import KvmarchError
    from kvmarch.scenarios.file import find, load
    from kvmarch.testing import golden
    from kvmarch.testing.cases import Wanted

    config = request.config
    test = request.node.path
    marks = [dict(m.kwargs) for m in request.node.iter_markers("kvmarch")]
    seen: list[str] = []

    def matches(scenario: str) -> None:
        __tracebackhide__ = True
        plugins = installed(config)
        given = _of_command_line(config, marks)
        seen.append(scenario)
        file = golden.Golden(golden.golden_path(test, request.node.name, len(seen)))
        try:
            choose = Wanted.of([given, *marks]).choose()
            path = find(scenario, plugins.scenario_folders())
            loaded = load(test.parent / path if not path.is_absolute() else path)
            written = golden.assert_matches(
                *(loaded, plugins, choose, file),
                update=config.getoption("--kvmarch-update"),
                part=bool(given),
            )
        except (KvmarchError, AssertionError, TypeError) as error:
            failure = str(error)
        else:
            failure = ""
        if failure:
            pytest.fail(failure, pytrace=False)
        if written:
            request.node.user_properties.append(("kvmarch_golden", str(file.path)))

    return matches


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say which golden files were written, each once."""
    written = [
        path
        for report in terminalreporter.stats.get("passed", ())
        for name, path in report.user_properties
        if name == "kvmarch_golden"
    ]
    for path in dict.fromkeys(written):
        terminalreporter.write_line(f"kvmarch: written: {path}")
