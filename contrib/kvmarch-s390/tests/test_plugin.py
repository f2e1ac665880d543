"""The distribution as kvmarch sees it: imports, contract, comparison, walk."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import kvmarch
import pytest
from kvmarch import EntryError, WalkLayout

import kvmarch_s390

PACKAGE = Path(kvmarch_s390.__file__).parent


def run(*words):
    """Run kvmarch; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "kvmarch", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def compare(scenario, kernels, *words):
    """Compare a scenario over releases; return the rows by release."""
    text = run(
        *("compare", scenario, "--arch", "s390", "--kernel", kernels),
        *("--format", "json", *words),
    )
    return {row["kernel"]: row for row in json.loads(text)["rows"]}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=str)
def test_only_public_names_are_imported(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            root = node.module.split(".")[0]
            assert root in {"kvmarch", "kvmarch_s390", *sys.stdlib_module_names}
            if root == "kvmarch":
                assert node.module == "kvmarch"
                assert {name.name for name in node.names} <= set(kvmarch.__all__)
        elif isinstance(node, ast.Import):
            assert all(n.name in sys.stdlib_module_names for n in node.names)


def test_the_contract_is_kept_up_to_the_last_tier():
    assert "s390 reaches tier 5" in run("check-plugin", "s390", "-k", "v6.8,v7.2")


def test_there_is_no_change_pte_in_any_release():
    rows = compare("change_pte", "v5.4,v6.9,v6.19,v7.2")

    assert list(rows) == ["v5.4", "v6.9", "v6.19", "v7.2"]
    assert {row["effect"] for row in rows.values()} == {"absent"}
    assert [row["mmu"] for row in rows.values()] == ["shared"] * 3 + ["own"]
    # With the host's tables the guest goes on in the merged page without an exit.
    assert [row["exits_on_reread"] for row in rows.values()] == [0, 0, 0, 1]
    assert {row["violations"] for row in rows.values()} == {"none"}


def test_no_notification_breaks_the_sharing_of_a_page_before_v7_0():
    rows = compare("ksm_cow", "v6.19,v7.0")

    assert [rows[k]["notified"] for k in ("v6.19", "v7.0")] == [0, 1]


def test_nothing_is_mmio():
    rows = compare("mmio_generation", "v6.19,v7.0")

    assert {row["exit"] for row in rows.values()} == {"exception"}


@pytest.mark.parametrize("root", ["segment", "region3", "region1"])
def test_the_walk_finds_what_the_kernel_mapped(bench, root):
    one = bench((7, 2), root=root)
    one.slot()
    one.access(3, "write")
    layout = one.k.walk.fn(one.k, one.vm.options)

    table, address = one.vm.arch.root, None
    for level in layout.levels:
        index = 3 * 4096 >> level.shift & (1 << level.bits) - 1
        entry = one.vm.tables.at(table).get(index)
        rule = next(r for r in level.rules if entry & r.mask == r.value)
        table = address = rule.address_of(entry)
    assert isinstance(layout, WalkLayout)
    assert layout.byteorder == "big"
    assert rule.role == "leaf"
    assert address == one.pfn(3) * 4096


@pytest.mark.parametrize(
    ("release", "entry", "level", "role"),
    [
        ((7, 2), 0x12345225, 0, "leaf"),
        ((7, 2), 0x12345623, 0, "kept"),
        ((7, 2), 0x400, 0, "absent"),
        ((7, 2), 0x0001000500000400, 0, "note"),
        ((7, 2), 0x0001000500000020, 1, "note"),
        ((7, 2), 0x12305C03, 1, "leaf"),
        ((7, 2), 0x56789000, 1, "table"),
        ((7, 2), 0x80005C07, 2, "leaf"),
        ((6, 1), 0x1234503F, 0, "leaf"),
        ((6, 1), 0x1234543B, 0, "kept"),
        ((6, 1), 0x400, 0, "absent"),
        ((6, 1), 0x20, 1, "absent"),
        ((6, 1), 0x45678007, 2, "table"),
    ],
)
def test_roles(link, arch, release, entry, level, role):
    k, options = link(release), arch.info.settle(release, {})
    rules = k.walk.fn(k, options).by_level[level].rules

    assert next(r.role for r in rules if entry & r.mask == r.value) == role


def test_two_gigabytes_are_mapped_since_v7_2(link, arch):
    kinds = [
        kvmarch_s390.kvmarch_decode(
            link(release), arch.info.settle(release, {}), 0x80005C07, 2
        )[0]
        for release in ((7, 1), (7, 2))
    ]

    assert kinds == ["unknown", "leaf"]


@pytest.mark.parametrize(
    ("entry", "level", "message"),
    [(0, 3, "has levels 0 to 2, not 3"), (1 << 64, 0, "is no 64-bit value")],
)
def test_what_is_no_entry_is_refused(link, arch, entry, level, message):
    with pytest.raises(EntryError, match=message):
        kvmarch_s390.kvmarch_decode(link(), arch.info.settle((7, 2), {}), entry, level)
