"""The pytest plugin as a stranger's tests use it: fixtures, mark, golden files."""

import json
import subprocess
import sys

import pytest

MARKED = """
import pytest

@pytest.mark.kvmarch(arch="arm64,x86", kernel="v6.1", mmu="tdp")
def test_it(kvm, kvmarch_case):
    assert kvm.access(3, "write") == "done"
    assert kvm.lost == []
    assert str(kvmarch_case).startswith(("arm64-v6.1", "x86-v6.1"))
"""
GOLDEN = """
import pytest

@pytest.mark.kvmarch(arch="arm64,mips", kernel="v6.9,v6.12")
def test_it(assert_matches):
    assert_matches("change_pte")
"""


def golden_of(project):
    (path,) = (project.folder / "golden").iterdir()
    return path


# -- what the mark asks for --------------------------------------------------------


def test_a_test_runs_on_the_kernels_that_its_mark_names(project):
    project.write("test_it.py", MARKED)
    ran = project.pytest("-v")

    assert ran.counts == {"passed": 2}, ran.text
    assert "test_it[arm64-v6.1-stage2]" in ran.text
    assert "test_it[x86-v6.1-tdp]" in ran.text


def test_the_command_line_narrows_what_marks_name(project):
    project.write("test_it.py", MARKED)
    arch = project.pytest("--kvmarch-arch=arm64")
    kernel = project.pytest("-v", "--kvmarch-kernel=v6.12")
    none = project.pytest("--kvmarch-arch=mips")

    assert arch.counts == {"passed": 1}, arch.text
    assert kernel.counts == {"passed": 2}, kernel.text
    assert "test_it[x86-v6.12-tdp]" in kernel.text
    assert none.counts == {"skipped": 1}, none.text


def test_every_installed_architecture_is_meant_without_a_mark(project):
    project.write(
        "test_it.py",
        "def test_it(kvm):\n    assert kvm.access(0) == 'done'\n",
    )
    ran = project.pytest("-v", "--kvmarch-kernel=v6.12")

    assert ran.status == 0, ran.text
    for name in ("arm64", "mips", "ppc", "x86"):
        assert f"test_it[{name}-v6.12" in ran.text


def test_changes_and_options_of_the_machine(project):
    project.write(
        "test_it.py",
        """
import pytest

@pytest.mark.kvmarch(arch="arm64", kernel="v6.9", without="bracketed-set-pte")
@pytest.mark.parametrize("vcpus", [1, 2])
def test_it(kvmarch_boot, kvmarch_case, vcpus):
    one = kvmarch_boot(pages=4, vcpus=vcpus)
    assert len(one.vm.vcpus) == vcpus
    assert "bracketed-set-pte" not in one.k.applied
    assert str(kvmarch_case).endswith("-bracketed-set-pte")
""",
    )

    ran = project.pytest()
    assert ran.counts == {"passed": 2}, ran.text


def test_a_kernel_without_what_is_asked_for_is_skipped_with_the_reason(project):
    project.write(
        "test_it.py",
        """
import pytest

@pytest.mark.kvmarch(arch="x86", kernel="v4.12", mmu="tdp")
def test_it(kvm):
    raise AssertionError
""",
    )

    ran = project.pytest("-rs")
    assert ran.counts == {"skipped": 1}, ran.text
    assert "x86 has no mmu=tdp in v4.12" in ran.text


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        pytest.param("arch='vax'", "unknown architecture 'vax'", id="arch"),
        pytest.param("kernel='v9.9'", "unknown release 'v9.9'", id="kernel"),
        pytest.param("size=3", "unknown option 'size'", id="option"),
        pytest.param("mmu='x'", "unknown value of option mmu 'x'", id="value"),
        pytest.param("arch=3", "wanted names, got 3", id="type"),
    ],
)
def test_a_mark_that_asks_for_nothing_is_one_line(project, mark, message):
    project.write(
        "test_it.py",
        f"import pytest\n@pytest.mark.kvmarch({mark})\ndef test_it(kvm):\n    pass\n",
    )

    ran = project.pytest()
    assert ran.status == 2
    assert f"test_it.py::test_it: {message}" in ran.text
    assert "Traceback" not in ran.text


# -- golden files ------------------------------------------------------------------


def test_a_golden_file_is_written_and_then_matched(project):
    project.write("test_it.py", GOLDEN)
    written = project.pytest("--kvmarch-update")
    path = golden_of(project)
    matched = project.pytest()
    again = project.pytest("--kvmarch-update")

    assert path.name == "test_it.test_it.json"
    assert f"kvmarch: written: {path}" in written.text
    assert "kvmarch: written" not in matched.text + again.text
    for ran in (written, matched, again):
        assert ran.counts == {"passed": 1}, ran.text
    rows = json.loads(path.read_text("utf-8"))["rows"]
    assert {row["arch"] for row in rows} == {"arm64", "mips"}


def test_a_difference_names_kernel_and_column_and_shows_the_schedule(project):
    project.write("test_it.py", GOLDEN)
    project.pytest("--kvmarch-update")
    path = golden_of(project)
    text = path.read_text("utf-8").replace('"installed"', '"replaced"', 1)
    path.write_text(text, "utf-8")
    ran = project.pytest()

    assert ran.counts == {"failed": 1}
    assert "arm64 v6.9 stage2: effect is 'installed', was 'replaced'" in ran.text
    assert "change_pte on arm64 v6.9 (" in ran.text
    assert "kvm_mmu_notifier_change_pte" in ran.text or "> " in ran.text
    assert path.read_text("utf-8") == text


def test_rows_that_came_and_rows_that_went(project):
    project.write("test_it.py", GOLDEN)
    project.pytest("--kvmarch-update")
    project.write("test_it.py", GOLDEN.replace("arm64,mips", "arm64,x86"))
    ran = project.pytest()

    assert "mips v6.9 guestid: is in the golden file only" in ran.text
    assert "x86 v6.9 tdp: is not in the golden file" in ran.text


def test_a_part_is_compared_with_its_part(project):
    project.write("test_it.py", GOLDEN)
    project.pytest("--kvmarch-update")
    before = golden_of(project).read_bytes()

    assert project.pytest("--kvmarch-arch=mips").counts == {"passed": 1}
    ran = project.pytest("--kvmarch-arch=mips", "--kvmarch-update")
    assert "would lose the other rows" in ran.text
    assert golden_of(project).read_bytes() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(None, "the golden file is missing", id="missing"),
        pytest.param('{"format": 1, "sc', "torn or no JSON", id="torn"),
        pytest.param("", "torn or no JSON", id="empty"),
        pytest.param("[]", "is of version None, this kvmarch reads 1", id="list"),
        pytest.param('{"format": 2}', "is of version 2, this", id="newer"),
        pytest.param('{"format": 1}', "has no rows", id="no-rows"),
        pytest.param('{"format": 1, "rows": [{}]}', "has no rows", id="bad-rows"),
        pytest.param(
            '{"format": 1, "scenario": "aging", "rows": []}',
            "is of scenario 'aging', not 'change_pte'",
            id="other-scenario",
        ),
    ],
)
def test_a_golden_file_that_cannot_be_used(project, text, message):
    project.write("test_it.py", GOLDEN)
    path = project.folder / "golden" / "test_it.test_it.json"
    if text is not None:
        project.write("golden/test_it.test_it.json", text)
    ran = project.pytest()

    assert ran.counts == {"failed": 1}
    assert message in ran.text
    assert "--kvmarch-update writes it anew" in ran.text
    assert "Traceback" not in ran.text
    assert (path.read_text("utf-8") if path.exists() else None) == text
    assert project.pytest("--kvmarch-update").counts == {"passed": 1}
    assert project.pytest().counts == {"passed": 1}


def test_a_scenario_that_is_not_there(project):
    project.write("test_it.py", GOLDEN.replace('"change_pte"', '"no_such"'))

    ran = project.pytest()
    assert ran.counts == {"failed": 1}
    assert "unknown scenario 'no_such'" in ran.text


# -- manners -----------------------------------------------------------------------


def test_the_plugin_imports_nothing_of_kvmarch_before_it_is_asked(project):
    project.write(
        "test_it.py",
        "import sys\ndef test_it():\n"
        "    assert not [n for n in sys.modules if n.split('.')[0] == 'kvmarch']\n"
        "    assert 'pytest_kvmarch' in sys.modules\n",
    )

    ran = project.pytest()
    assert ran.counts == {"passed": 1}, ran.text


def test_loading_the_plugin_takes_no_time():
    code = (
        "import time, pytest; t = time.perf_counter(); import pytest_kvmarch; "
        "print(time.perf_counter() - t)"
    )
    seconds = min(
        float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(3)
    )

    assert seconds < 0.02
