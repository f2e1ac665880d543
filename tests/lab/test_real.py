"""Real kernels, from the command line to the comparison. Run with ``--lab``."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvmarch import plugins

pytestmark = pytest.mark.lab

RELEASE = "6.1"
NEWER = {"riscv": "6.12"}
"""Architectures of which 6.1 is no kernel of Debian's."""
BOOTS = sorted(
    name for name, arch in plugins.load().loaded.items() if "lab" in arch.operations
)
SCENARIOS = ("tour", "change_pte", "dirty_log", "ksm_cow")
STEPS = """
slot id=1 memory=code gfn=0xe0000
slot id=0 memory=ram gfn=0
read gfn=0
write gfn=2
slot id=0 memory=ram gfn=0 flags=log_dirty
write gfn=3 vcpu=1
dirty_get id=0
mprotect memory=ram page=3 pages=1 prot=r
read gfn=3
dontneed memory=ram page=4 pages=2
exec gfn=6
slot id=0 memory=ram gfn=0x100 flags=log_dirty
read gfn=0x100
fork
write gfn=0x101
slot_delete id=0
read gfn=0x100
""".strip().splitlines()


def kvmarch(*words, check=True, **more):
    command = [sys.executable, "-m", "kvmarch", *map(str, words)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=500, **more
    )
    if check:
        assert not done.returncode, done.stderr
    return done


def kernel_of(arch):
    return NEWER.get(arch, RELEASE)


def processes():
    """Return the command lines of this user's emulators."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if b"qemu-system" in words[0]:
                found.append((path.parent.name, words))
    return found


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("arch", BOOTS)
def test_a_recording_agrees_with_the_model(tmp_path, arch, scenario):
    out = tmp_path / "out.json"

    kvmarch("lab", "run", scenario, "-a", arch, "-k", kernel_of(arch), "-o", out)
    compared = kvmarch("conform", out, "--format", "json", "-v")

    rows = json.loads(compared.stdout)["rows"]
    assert not [row for row in rows if row["verdict"] == "differ"]
    assert sum(row["verdict"] == "agree" for row in rows) > 15


TWO_VMS = """
title = "Two VMs over the same memory"
[vm]
count = 2
memory = [{ name = "ram", pages = 8, contents = [1, 1] }]
[[task]]
name = "vmm"
steps = [
    "slot id=0 memory=ram gfn=0",
    "slot id=0 memory=ram gfn=0 vm=1 flags=log_dirty",
    "write gfn=2",
    "write gfn=2 vm=1",
    "read gfn=3 vm=1",
    "dirty_get id=0 vm=1",
    "ksm_merge memory=ram",
    "dontneed memory=ram page=2 pages=2",
    "vm_destroy",
    "write gfn=2 vm=1",
]
"""


@pytest.mark.parametrize("arch", BOOTS)
def test_several_vms_of_one_process_are_told_apart(tmp_path, arch):
    path, out = tmp_path / "two.toml", tmp_path / "out.json"
    path.write_text(TWO_VMS)

    kvmarch("lab", "run", path, "-a", arch, "-k", kernel_of(arch), "-o", out)
    compared = kvmarch("conform", out, "--format", "json", "-v")

    rows = json.loads(compared.stdout)["rows"]
    trees = [row for row in rows if row["what"] == "tree of VM 1"]
    assert {row["verdict"] for row in trees} == {"agree"}
    assert len(trees) == 9
    assert not [row for row in rows if row["verdict"] == "differ"]


@pytest.fixture(scope="module")
def session():
    from kvmarch.lab.fetch import fetch
    from kvmarch.lab.kernels import known
    from kvmarch.lab.machines import machine_of
    from kvmarch.lab.session import Config, booted

    arch = plugins.load().get("x86")
    machine = machine_of(arch)
    kernel = known(machine, RELEASE, None) or fetch(machine, RELEASE, None, print)
    with booted(arch, Config(kernel)) as one:
        yield one


def setup():
    from kvmarch.lab.sides import Memory, Setup

    return Setup((Memory("ram", 64, contents=(1, 1)), Memory("code", 1)), 2, 0xE0000)


def test_a_boot_serves_one_vm_after_the_other(session):
    seen = []
    for _ in range(3):
        session.begin(setup())
        seen.append([session.do(line) for line in STEPS])
        session.end()

    first = [look.answers for look in seen[0]]
    assert first[2] == ("run ld gpa=10 rc=0 exit=5",)
    for looks in seen:
        assert [look.answers for look in looks] == first
        assert [
            [(leaf.gfn, leaf.level, leaf.kind) for leaf in look.trees[0]]
            for look in looks
        ] == [
            [(leaf.gfn, leaf.level, leaf.kind) for leaf in look.trees[0]]
            for look in seen[0]
        ]


def test_twenty_steps_a_second_with_everything_that_is_seen(session):
    session.begin(setup())
    start = time.monotonic()
    for _ in range(2):
        for line in STEPS:
            session.do(line)
    taken = time.monotonic() - start
    session.end()

    assert 2 * len(STEPS) / taken > 20


def test_a_memory_of_many_pages_is_told_and_seen_whole(session):
    from kvmarch.lab.sides import Memory, Setup

    contents = tuple(n << 20 for n in range(5000))
    rows = (Memory("ram", 16000, contents=contents), Memory("code", 1))
    session.begin(Setup(rows, 1, 0xE0000))
    session.do("slot id=1 memory=code gfn=0xe0000")
    for page in range(0, 16000, 4000):
        session.do(f"dontneed memory=ram page={page} pages=1")
    look = session.do("slot id=0 memory=ram gfn=0")
    session.end()

    pages = look.frames["ram"]
    assert len(pages) == 16000
    assert [page for page, pfn in enumerate(pages) if not pfn] == list(
        range(0, 16000, 4000)
    )


def test_a_step_that_kills_the_process_is_named(session):
    from kvmarch.errors import LabError

    session.begin(setup())
    session.do("mprotect memory=ram prot=r")
    with pytest.raises(LabError, match="of SIGSEGV: at 'touch memory=ram pages=1'"):
        session.do("touch memory=ram pages=1")
    session.end()


def test_a_wrong_step_leaves_the_vm_as_it_was(session):
    from kvmarch.errors import KvmarchError

    session.begin(setup())
    session.do(STEPS[0])
    with pytest.raises(KvmarchError, match="no vcpu 7"):
        session.do("read gfn=0 vcpu=7")
    with pytest.raises(KvmarchError, match="from outside"):
        session.do("migrate memory=ram page=0")

    assert session.do(STEPS[1]).answers[0].endswith("rc=0 errno=0")
    session.end()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--cpu", "qemu64,-svm"), "has no /dev/kvm"),
        (("--append", "rdinit=/none"), "the kernel panicked"),
        (("--limit", "1"), "no answer from the kernel for 3 seconds"),
        (("--cpu", "none"), "unable to find CPU model"),
        (("-o", "/dev/full"), "No space left on device"),
    ],
)
def test_what_goes_wrong_is_one_line_and_nothing_is_left(tmp_path, words, why):
    before = {number for number, _ in processes()}

    done = kvmarch(
        "lab",
        "run",
        "change_pte",
        "-a",
        "x86",
        "-k",
        RELEASE,
        *words,
        check=False,
        cwd=tmp_path,
    )

    assert done.returncode == 2
    assert why in done.stderr
    assert "Traceback" not in done.stderr
    mine = [
        words
        for number, words in processes()
        if number not in before and str(os.getpid()).encode() in words
    ]
    assert not mine


@pytest.mark.parametrize("after", [0.5, 3, 9, 12])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_killed_leaves_nothing_behind(tmp_path, number, after):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    env = {**os.environ, "TMPDIR": str(temporary)}
    command = [sys.executable, "-m", "kvmarch", "lab", "run", "tour", "-a", "x86"]
    run = subprocess.Popen(
        [*command, "-k", RELEASE, "-o", "out.json"],
        cwd=tmp_path,
        env=env,
        stderr=subprocess.DEVNULL,
    )
    time.sleep(after)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children")
    mine = children.read_text().split() if children.exists() else []

    run.send_signal(number)
    run.wait(10)

    # SIGTERM may come before there is anything to put away.
    assert run.returncode in {130, -signal.SIGKILL, -signal.SIGTERM, 0}
    end = time.monotonic() + 5
    while time.monotonic() < end and any(Path(f"/proc/{n}").exists() for n in mine):
        time.sleep(0.1)
    assert not [n for n in mine if Path(f"/proc/{n}").exists()]
    assert list(temporary.iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} <= {"tmp", "out.json"}
    if (tmp_path / "out.json").exists():
        json.loads((tmp_path / "out.json").read_text("utf-8"))
