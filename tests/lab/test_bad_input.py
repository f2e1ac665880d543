"""What goes wrong in a kernel, at every stage, with a stand-in for QEMU.

:mod:`test_real` does the same with real kernels. Here no time matters: who waits, waits
for what the stand-in has written.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("numpy")

from kvmarch.lab.fetch import KEYRING

STAND_IN = Path(__file__).with_name("stand_in.py")
LONG = 60
"""Seconds after which a test gives up."""
COMPILER = '#!/bin/sh\nfor word; do last=$word; done\necho program > "$last"\n'


@pytest.fixture
def bench(tmp_path):
    """A folder with programs, one to work in and one for temporary files."""
    for name in ("bin", "here", "tmp", "notes"):
        (tmp_path / name).mkdir()
    for name, text in {
        "qemu-system-x86_64": f'#!/bin/sh\nexec {sys.executable} {STAND_IN} "$@"\n',
        "x86_64-linux-gnu-gcc": COMPILER,
    }.items():
        program = tmp_path / "bin" / name
        program.write_text(text)
        program.chmod(0o755)
    image = tmp_path / "bzImage"
    image.write_bytes(b"MZ".ljust(0x202, b"\0") + b"HdrS" + bytes(4096))
    return SimpleNamespace(
        here=tmp_path / "here",
        tmp=tmp_path / "tmp",
        notes=tmp_path / "notes",
        image=image,
        env={
            **os.environ,
            "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
            "TMPDIR": str(tmp_path / "tmp"),
            "STAND_IN_FOLDER": str(tmp_path / "notes"),
        },
    )


def start(bench, *words, at=-1, how="", also=()):
    """Start a command of the lab, and return it."""
    plan = json.dumps({"at": at, "how": how, "also": also})
    command = [sys.executable, "-m", "kvmarch", "lab", *words]
    return subprocess.Popen(
        [*command, "--arch", "x86", "--kernel", str(bench.image)],
        cwd=bench.here,
        env={**bench.env, "STAND_IN": plan},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def told(bench):
    """Return the commands that the stand-in has been given."""
    path = bench.notes / "commands"
    return path.read_text().splitlines() if path.exists() else []


def wait_for(condition):
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def check_nothing_is_left(bench):
    pid = bench.notes / "pid"
    if pid.exists():
        assert not Path("/proc", pid.read_text()).exists()
    assert list(bench.tmp.iterdir()) == []
    assert {path.suffix for path in bench.here.iterdir()} <= {".json", ".toml"}


def kept(bench):
    (path,) = bench.here.glob("*.json")
    return json.loads(path.read_text("utf-8"))


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("hang", "no answer from the kernel for 3 seconds"),
        ("panic", "the kernel panicked: nobody knows"),
        ("end", "qemu-system-x86_64 ended (the machine was reset or switched off)"),
        ("die", "qemu-system-x86_64 ended (status 1) before it was told to"),
        ("killed", "qemu-system-x86_64 ended (status -11) before it was told to"),
    ],
)
def test_a_boot_that_fails_shows_the_console(bench, how, why):
    run = start(bench, "run", "change_pte", "--limit", "1", at=0, how=how)
    out, err = run.communicate(timeout=LONG)

    assert run.returncode == 2
    assert out == ""
    booting, *console, last = err.splitlines()
    assert booting == "kvmarch: booting bzImage with qemu-system-x86_64"
    assert last.startswith(f"kvmarch: {why}")
    assert console[0] == "[ 0.1] Linux begins"
    assert "Traceback" not in err
    check_nothing_is_left(bench)
    assert list(bench.here.iterdir()) == []


def test_a_line_that_is_too_long_is_refused(bench):
    steps = [
        "slot id=0 memory=ram gfn=0 flags=log_dirty",
        f"dirty_clear id=0 first=0 pages=0x80000 bits={(1 << 0x80000) - 1:#x}",
    ]
    text = 'title = "t"\n[[vm.memory]]\nname = "ram"\nmib = 2048\n'
    (bench.here / "long.toml").write_text(
        f'{text}[[task]]\nname = "vmm"\nsteps = {json.dumps(steps)}\n'
    )

    run = start(bench, "run", "long.toml")
    _out, err = run.communicate(timeout=LONG)

    assert run.returncode == 2
    assert err.splitlines()[-1].endswith("...: too long a line for the probe")
    check_nothing_is_left(bench)


@pytest.mark.parametrize(
    ("scenario", "missing", "why"),
    [
        ("change_pte", "kvm", "has no /dev/kvm: no KVM, or no module for it (None"),
        ("ksm_cow", "ksm", "has no KSM; CONFIG_KSM is needed (None"),
    ],
)
def test_a_kernel_without_a_part_is_named(bench, scenario, missing, why):
    also = ["@# module kvm.ko: Exec format error", f"@! {missing} None such"]

    run = start(bench, "run", scenario, also=also)
    _out, err = run.communicate(timeout=LONG)

    assert run.returncode == 2
    *console, last = err.splitlines()
    assert why in last
    assert "module kvm.ko: Exec format error" in console
    check_nothing_is_left(bench)


def test_a_scenario_that_merges_nothing_needs_no_ksm(bench):
    run = start(bench, "run", "mprotect_dontneed", also=["@! ksm None such"])
    out, err = run.communicate(timeout=LONG)

    assert run.returncode == 0, err
    assert "recorded" in out
    assert kept(bench)["complete"] is True
    check_nothing_is_left(bench)


FAILS = {
    "hang": "no answer from the kernel for 1 seconds",
    "panic": "the kernel panicked: nobody knows",
    "end": "the machine was reset or switched off",
    "die": "ended (status 1) before it was told to",
    "gone": "died of SIGSEGV: at 'read gfn=3'; not enough memory",
}


@pytest.mark.parametrize("how", FAILS)
def test_what_was_recorded_before_it_went_wrong_is_kept(bench, how):
    # Counters, tracing, the VM, two memories and a slot for code come first.
    run = start(bench, "run", "mprotect_dontneed", "--limit", "1", at=12, how=how)
    out, err = run.communicate(timeout=LONG)

    assert run.returncode == 2
    assert out == ""
    assert FAILS[how] in err.splitlines()[-1]
    assert "what was recorded until then" in err
    document = kept(bench)
    assert document["complete"] is False
    assert document["stages"][0]["console"]
    assert document["kernel"] == "6.1.0-1-amd64"
    check_nothing_is_left(bench)


def test_ksm_that_comes_to_no_end_is_told(bench):
    run = start(bench, "run", "ksm_cow", how="late")
    _out, err = run.communicate(timeout=LONG)

    assert run.returncode == 2
    assert "'ksm_merge memory=ram" in err.splitlines()[-1]
    assert err.endswith("KSM has not scanned all memory in 30 s\n")
    check_nothing_is_left(bench)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("at", [0, 1, 4, 12])
def test_a_signal_ends_it_and_keeps_what_there_is(bench, number, at):
    run = start(bench, "run", "mprotect_dontneed", at=at, how="hang")
    wait_for(lambda: len(told(bench)) >= at if at else (bench.notes / "pid").exists())

    run.send_signal(number)
    out, err = run.communicate(timeout=LONG)

    assert run.returncode == 130
    assert out == ""
    assert "Traceback" not in err
    assert at < 12 or kept(bench)["complete"] is False
    check_nothing_is_left(bench)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", [3, 20], ids=["at first", "in a VM"])
def test_a_signal_ends_fuzzing(bench, number, at):
    run = start(bench, "fuzz", "--seed", "1", at=at, how="hang")
    wait_for(lambda: len(told(bench)) >= at or run.poll() is not None)

    run.send_signal(number)
    _out, err = run.communicate(timeout=LONG)

    assert run.returncode == 130
    assert "Traceback" not in err
    check_nothing_is_left(bench)


def test_a_full_disk_does_not_hide_what_went_wrong(bench):
    run = start(
        bench, "run", "mprotect_dontneed", "-o", "/dev/full", at=12, how="panic"
    )
    _out, err = run.communicate(timeout=LONG)

    assert run.returncode == 2
    assert "kvmarch: /dev/full: No space left on device" in err
    assert err.splitlines()[-1] == "kvmarch: the kernel panicked: nobody knows"
    check_nothing_is_left(bench)


def test_a_full_disk_is_one_line(bench):
    run = start(bench, "run", "mprotect_dontneed", "-o", "/dev/full")
    _out, err = run.communicate(timeout=LONG)

    assert run.returncode == 2
    assert err.splitlines()[1:] == ["kvmarch: /dev/full: No space left on device"]
    check_nothing_is_left(bench)


@pytest.mark.parametrize("name", ["kvm_amd.nosuch", "kvm-amd.nosuch", "none.such"])
def test_an_argument_that_the_kernel_does_not_know_is_no_silent_one(bench, name):
    also = ["@P kvm_amd.npt=1"]

    run = start(bench, "run", "change_pte", "--module-arg", f"{name}=1", also=also)
    _out, err = run.communicate(timeout=LONG)

    name = name.replace("-", "_")
    assert run.returncode == 2
    assert f"kernel 6.1.0-1-amd64 shows no parameter {name};" in err
    check_nothing_is_left(bench)


def test_an_argument_is_recorded_as_the_kernel_says_it(bench):
    also = ["@P kvm.mmio_caching=N"]
    words = ("run", "mprotect_dontneed", "--module-arg", "kvm.mmio_caching=0")

    run = start(bench, *words, also=also)
    _out, err = run.communicate(timeout=LONG)

    assert run.returncode == 0, err
    assert kept(bench)["module_params"] == {"kvm.mmio_caching": "N"}
    check_nothing_is_left(bench)


APT = """\
#!/bin/sh
case "$*" in
indextargets*) echo "http://here.example/debian bookworm" ;;
*" search "*) echo "linux-image-6.1.0-9-amd64 - Linux" ;;
*" download "*)
    echo half > linux.deb
    echo $$ > "$STAND_IN_FOLDER/pid"
    exec sleep 600 ;;
esac
"""


@pytest.mark.skipif(not KEYRING.exists(), reason="no keys of Debian's")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_download(bench, tmp_path, number):
    for name in ("apt-get", "apt-cache"):
        (tmp_path / "bin" / name).write_text(APT)
        (tmp_path / "bin" / name).chmod(0o755)
    run = subprocess.Popen(
        [sys.executable, "-m", "kvmarch", "lab", "fetch", "6.1", "-a", "x86"],
        cwd=bench.here,
        env=bench.env,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: (bench.notes / "pid").exists() or run.poll() is not None)

    run.send_signal(number)
    _out, err = run.communicate(timeout=LONG)

    assert run.returncode == 130, err
    assert "Traceback" not in err
    assert not list((tmp_path / "cache").rglob("*.deb"))
    assert not list((tmp_path / "cache" / "kvmarch").glob(".deb-*"))
    check_nothing_is_left(bench)
