"""The fixtures with which a test names a release itself, and runs commands."""

TEST = """
import pytest
pytestmark = pytest.mark.kvmarch(arch="mips")
"""


def test_machines_kernels_and_what_is_known_of_the_plugin(project):
    project.write(
        "test_it.py",
        TEST
        + """
def test_machines(kvmarch_bench, kvmarch_plugin):
    old = kvmarch_bench((5, 4), pages=4, vcpus=2, page_size=16384)
    new = kvmarch_bench()
    assert kvmarch_plugin.name == "mips"
    assert old.k.release == (5, 4)
    assert old.page == 16384
    assert len(old.vm.vcpus) == 2
    assert new.k.release == (7, 2)
    assert old.slot() == 0
    assert old.access(1, "write") == "done"

def test_kernels(kvmarch_link):
    name = "change-pte-removed"
    assert name not in kvmarch_link((6, 9)).applied
    assert name in kvmarch_link((6, 9), plus=[name]).applied
    assert name not in kvmarch_link(minus=[name]).applied
""",
    )

    ran = project.pytest()
    assert ran.counts == {"passed": 2}, ran.text


def test_a_test_of_several_plugins_runs_on_each(project):
    project.write(
        "test_it.py",
        """
import pytest

@pytest.mark.kvmarch(arch="mips,arm64")
def test_it(kvmarch_plugin, kvmarch_link):
    assert kvmarch_link().arch == kvmarch_plugin.name
""",
    )

    assert project.pytest().counts == {"passed": 2}
    ran = project.pytest("-v", "--kvmarch-arch=mips")
    assert ran.counts == {"passed": 1}
    assert "test_it.py::test_it[mips]" in ran.text


def test_comparisons(project):
    project.write(
        "test_it.py",
        TEST
        + """
def test_rows(kvmarch_compare):
    rows = kvmarch_compare("change_pte", "v6.9,v6.12", mmu="guestid")
    assert list(rows) == ["v6.9", "v6.12"]
    assert {row["arch"] for row in rows.values()} == {"mips"}
    assert [row["effect"] for row in rows.values()] == ["installed", "absent"]
    rows = kvmarch_compare("change_pte", "v6.9", with_="change-pte-removed")
    assert rows["v6.9"]["effect"] == "absent"

def test_no_such_scenario(kvmarch_compare):
    kvmarch_compare("no_such", "v6.9")

@pytest.mark.kvmarch(arch="ppc")
def test_no_such_option(kvmarch_compare):
    kvmarch_compare("change_pte", "v6.9", mmu="x")
""",
    )

    ran = project.pytest()
    assert ran.counts == {"passed": 1, "failed": 2}, ran.text
    assert "unknown scenario 'no_such'" in ran.text
    assert "mmu" in ran.text
    assert "Traceback" not in ran.text


def test_commands(project):
    project.write(
        "test_it.py",
        """
def test_it(kvmarch_run):
    assert "mips" in kvmarch_run("plugins")
    kvmarch_run("run", "no_such", status=2)

def test_another_status(kvmarch_run):
    kvmarch_run("run", "no_such")
""",
    )

    ran = project.pytest()
    assert ran.counts == {"passed": 1, "failed": 1}, ran.text
    assert "kvmarch run no_such: status 2, not 0" in ran.text
    assert "unknown scenario 'no_such'" in ran.text


def test_where_there_is_nothing_to_test_it_says_so(project):
    project.write(
        "test_it.py",
        TEST
        + """
def test_it(kvmarch_scenario):
    raise AssertionError
""",
    )

    ran = project.pytest("-rs")
    assert ran.counts == {"skipped": 1}, ran.text
    assert "there is no scenario of an architecture that reaches tier 2" in ran.text
    ran = project.pytest("-rs", "--kvmarch-arch=x86")
    assert ran.counts == {"skipped": 1}, ran.text
    assert "there is no scenario that was asked for" in ran.text
