"""The emulator's console, pause and end, with a stand-in for QEMU."""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kvmarch import plugins
from kvmarch.errors import LabError
from kvmarch.lab.qemu import Emulator, ending_on_signals

X86 = plugins.load(only=("x86",)).get("x86").operations["lab"]()
GREETING = '{"QMP": {"version": {"qemu": {"major": 9, "minor": 1, "micro": 0}}}}'
QEMU = """\
#!{python}
import os, socket, sys, threading, time
words = sys.argv[1:]
text = next(word for word in words if word.startswith("socket,id=qmp,fd="))
qmp = socket.socket(fileno=int(text.rpartition("=")[2]))
open("{folder}/args", "w").write("\\n".join(words))
open("{folder}/initrd", "wb").write(
    open(words[words.index("-initrd") + 1], "rb").read()
)

def monitor():
    qmp.sendall(b'{greeting}\\n')
    for line in qmp.makefile():
        open("{folder}/qmp", "a").write(line)
        qmp.sendall(b'{{"event": "X"}}\\n{{"return": {{}}}}\\n')

threading.Thread(target=monitor, daemon=True).start()
for line in sys.stdin:
    word = line.strip()
    if word == "die":
        print("last words", flush=True)
        sys.exit(3)
    if word == "panic":
        print("[ 1.0] Kernel panic - not syncing: why not\\n[ 1.0] Call Trace:")
    elif word != "hang":
        print(f"noise\\r\\n[ 2.0] more@C {{word}} rc=0\\n@E an event\\r\\n@.")
    sys.stdout.flush()
    if word == "hang":
        time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the stand-in leaves what it was told."""
    program = tmp_path / "qemu-system-none"
    text = QEMU.format(python=sys.executable, folder=tmp_path, greeting=GREETING)
    program.write_text(text)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


@pytest.fixture
def emulator(folder):
    machine = replace(X86, qemu="qemu-system-none")
    with Emulator(machine, b"kernel", b"archive", mib=1, limit=5) as one:
        yield one


def child(emulator):
    return Path(f"/proc/{emulator._process.pid}")


def test_what_qemu_is_told(emulator, folder):
    emulator.send("go")
    emulator.answers()

    words = (folder / "args").read_text().split("\n")
    assert "pc,memory-backend=ram" in words
    assert words[words.index("-m") + 1] == "1M"
    assert "console=ttyS0" in words[words.index("-append") + 1]
    assert (folder / "initrd").read_bytes() == b"archive"
    assert emulator.version == "9.1"


def test_answers_are_picked_out_of_what_the_kernel_prints(emulator):
    emulator.send("go")

    assert emulator.answers() == [("C", "go rc=0"), ("E", "an event")]
    assert list(emulator.tail) == ["noise"]


def test_several_commands_are_answered_in_order(emulator):
    emulator.send("one")
    emulator.send("two")

    assert [emulator.answers()[0], emulator.answers()[0]] == [
        ("C", "one rc=0"),
        ("C", "two rc=0"),
    ]


def test_the_machine_is_stopped_and_goes_on(emulator, folder):
    with emulator.paused():
        assert '"stop"' in (folder / "qmp").read_text()
        assert '"cont"' not in (folder / "qmp").read_text()

    assert '"cont"' in (folder / "qmp").read_text()


def test_a_machine_goes_on_after_an_error(emulator, folder):
    with pytest.raises(ZeroDivisionError), emulator.paused():
        _ = 1 // 0

    assert '"cont"' in (folder / "qmp").read_text()


def test_its_memory_can_be_read_here(emulator):
    with emulator.ram.open("r+b") as ram:
        assert ram.seek(0, os.SEEK_END) == 1 << 20


@pytest.mark.parametrize(
    ("word", "why", "console"),
    [
        ("die", r"qemu-system-none ended \(status 3\)", "last words"),
        ("panic", "the kernel panicked", "Call Trace"),
        ("hang", "no answer from the kernel for 0.5 seconds", ""),
    ],
)
def test_an_end_shows_the_console(emulator, word, why, console):
    emulator.send(word)

    with pytest.raises(LabError, match=why) as caught:
        emulator.answers(0.5 if word == "hang" else None)
    assert console in caught.value.console


def test_a_machine_that_does_not_answer_is_not_asked_again(emulator):
    emulator.send("hang")
    with pytest.raises(LabError, match="no answer"):
        emulator.answers(0.2)

    with pytest.raises(LabError, match="no answer from the kernel"):
        emulator.send("go")


def test_nothing_is_left_when_it_is_closed(emulator):
    before = child(emulator)
    files = [Path(f"/proc/self/fd/{number}") for number in emulator._files]
    assert before.exists()
    assert all("kvmarch-lab" in str(file.readlink()) for file in files)

    emulator.close()
    emulator.close()

    assert not before.exists()
    assert not any(
        file.is_symlink() and "kvmarch-lab" in str(file.readlink()) for file in files
    )


def test_what_is_no_qemu_is_refused(folder):
    (folder / "qemu-system-none").write_text(
        "#!/bin/sh\necho no such machine\nexit 1\n"
    )
    machine = replace(X86, qemu="qemu-system-none")

    with (
        pytest.raises(LabError, match=r"ended \(status 1\)") as caught,
        Emulator(machine, b"kernel", b"archive", mib=1, limit=5),
    ):
        pass
    assert caught.value.console == "no such machine"


def test_sigterm_ends_as_ctrl_c_does():
    with pytest.raises(KeyboardInterrupt), ending_on_signals():
        os.kill(os.getpid(), signal.SIGTERM)

    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ending_on_signals():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
