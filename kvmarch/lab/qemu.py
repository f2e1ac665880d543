"""A kernel under QEMU's software emulation: console, pause, memory, and its end.

Nothing of it is on disk: RAM, initramfs and unpacked kernels are anonymous files, which
live as long as somebody has them open.
"""

__all__ = ["Emulator", "emulator_program", "ending_on_signals"]

import contextlib
import ctypes
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from kvmarch.arch import LabMachine
from kvmarch.errors import LabError

APPEND = (
    "loglevel=4 panic=-1 rdinit=/init "
    # Tables that were freed must not look as if they were live.
    "init_on_free=1 "
    # It would age the guest's memory at times of its own (7.x).
    "damon_stat.enabled=0"
)
"""The kernel's command line; it knows what is none of its own."""
TAIL = 30
"""Lines of the console that an error shows."""
_ANSWER = re.compile(r"@([KPTCHFEMNWXQ#!.])(?: (.*))?$")
_DIED = re.compile(r"Kernel panic - not syncing(?:: (.*))?")
_ENDS = (signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


@contextlib.contextmanager
def ending_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a command as Ctrl-C does: everything is put away."""

    def end(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # What is ignored stays so: nohup is to be heeded.
    heard = [n for n in _ENDS if signal.getsignal(n) is not signal.SIG_IGN]
    before = {n: signal.signal(n, end) for n in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def emulator_program(machine: LabMachine) -> str:
    """Return the path of QEMU.

    :raises LabError: it is not installed, with what to install.
    """
    program = shutil.which(machine.qemu)
    if program is None:
        raise LabError(f"no {machine.qemu}; apt install {machine.qemu_package}")
    return program


def _die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the parent is killed."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Emulator:
    """One machine, from its boot to its end; to be used in a ``with``.

    :param mib: RAM in MiB.
    :param limit: seconds that the kernel may take to answer; a boot may take three
        times as many.
    """

    def __init__(
        self,
        machine: LabMachine,
        kernel: Path | bytes,
        initrd: bytes,
        *,
        mib: int = 256,
        append: str = "",
        limit: float = 60,
    ) -> None:
        self.machine = machine
        self.limit = limit
        self.version = ""
        self.tail: deque[str] = deque(maxlen=TAIL)
        self._kernel = kernel
        self._initrd = initrd
        self._bytes = mib << 20
        self._append = append
        self._left = b""
        self._lost: LabError | None = None
        """Why the machine does not answer any more."""
        self._process: subprocess.Popen[bytes] | None = None
        self._qmp: socket.socket | None = None
        self._qmp_left = b""
        self._ram = -1
        self._files: list[int] = []

    @property
    def ram(self) -> Path:
        """Return where the RAM can be opened, in this process."""
        return Path(f"/proc/self/fd/{self._ram}")

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _start(self) -> None:
        machine = self.machine
        program = emulator_program(machine)
        initrd = self._file("initrd", self._initrd)
        kernel = self._kernel
        if isinstance(kernel, bytes):
            kernel = self._file("kernel", kernel)
        self._file("ram", b"")
        self._ram = self._files[-1]
        os.ftruncate(self._ram, self._bytes)
        self._qmp, theirs = socket.socketpair()
        size = f"{self._bytes >> 20}M"
        ram = f"size={size},mem-path=/proc/self/fd/{self._ram},share=on"
        words = f"console={machine.console} {APPEND} {machine.append} {self._append}"
        command = [program, "-machine", f"{machine.machine},memory-backend=ram"]
        command += ["-cpu", machine.cpu, "-smp", "1", "-m", size, "-accel", "tcg"]
        command += ["-object", f"memory-backend-file,id=ram,{ram}"]
        command += ["-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"]
        command += ["-chardev", f"socket,id=qmp,fd={theirs.fileno()}"]
        command += ["-mon", "chardev=qmp,mode=control"]
        command += ["-kernel", str(kernel), "-initrd", str(initrd)]
        command += ["-append", " ".join(words.split())]
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own command
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(*self._files, theirs.fileno()),
                # A Ctrl-C is for this program, which then ends QEMU.
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - it is one system call
            )
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        self._qmp.settimeout(self.limit)
        version = self._qmp_read()["QMP"]["version"]["qemu"]
        self.version = ".".join(str(version[key]) for key in ("major", "minor"))
        self._command("qmp_capabilities")

    def _file(self, name: str, data: bytes) -> Path:
        """Make an anonymous file; return where QEMU finds it.

        :raises LabError: there is no memory for it.
        """
        number = os.memfd_create(f"kvmarch-lab-{name}")
        self._files.append(number)
        try:
            with os.fdopen(os.dup(number), "wb") as file:
                file.write(data)
        except OSError as error:
            raise LabError(f"no memory for the {name}: {error.strerror}") from None
        return Path(f"/proc/self/fd/{number}")

    # -- the console -----------------------------------------------------------------

    def send(self, line: str) -> None:
        """Give the guest's program a command.

        :raises LabError: nobody is there to take it.
        """
        if self._lost is not None:
            raise self._lost
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise self._dead() from None

    def answers(self, limit: float | None = None) -> list[tuple[str, str]]:
        """Return what the guest's program says until it is done: letter and text.

        :param limit: seconds; the machine's own if it is left out.
        :raises LabError: it takes too long, the kernel panics, or QEMU ends.
        """
        limit = self.limit if limit is None else limit
        end = time.monotonic() + limit
        found: list[tuple[str, str]] = []
        while True:
            line = self._line(end)
            if line is None:
                why = f"no answer from the kernel for {limit:g} seconds"
                raise self._lose(why)
            at = line.find("@")
            answer = _ANSWER.match(line[at:]) if at >= 0 else None
            if answer is None:
                self.tail.append(line)
                died = _DIED.search(line)
                if died is not None:
                    self._drain()
                    why = f": {died[1]}" if died[1] else ""
                    raise self._lose(f"the kernel panicked{why}")
                continue
            if answer[1] == ".":
                return found
            found.append((answer[1], answer[2] or ""))

    def _line(self, end: float) -> str | None:
        """Return the next line of the console, or None when the time is over."""
        assert self._process is not None
        assert self._process.stdout is not None
        output = self._process.stdout.fileno()
        while b"\n" not in self._left:
            left = end - time.monotonic()
            if left <= 0 or not select.select([output], [], [], left)[0]:
                return None
            chunk = os.read(output, 1 << 16)
            if not chunk:
                raise self._dead()
            self._left += chunk
        line, self._left = self._left.split(b"\n", 1)
        return line.decode("utf-8", "replace").rstrip("\r")

    def _drain(self) -> None:
        """Keep what the kernel still prints within a second."""
        with contextlib.suppress(LabError):
            end = time.monotonic() + 1
            while (line := self._line(end)) is not None:
                self.tail.append(line)

    def _dead(self) -> LabError:
        """Return why QEMU ended, with what it printed in the end."""
        assert self._process is not None
        assert self._process.stdout is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2)
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._process.stdout.fileno(), 1 << 16):
                self._left += chunk
        self.tail.extend(self._left.decode("utf-8", "replace").splitlines())
        self._left = b""
        status = self._process.returncode
        # It is told not to begin again.
        how = f"status {status}" if status else "the machine was reset or switched off"
        return self._lose(f"{self.machine.qemu} ended ({how}) before it was told to")

    def _lose(self, why: str) -> LabError:
        """Return an error after which nothing can be told to the machine any more."""
        self._lost = LabError(why, self.console)
        return self._lost

    @property
    def console(self) -> str:
        """Return the last lines of the console, without its answers."""
        return "\n".join(line for line in self.tail if line.strip())

    # -- pause and go on ---------------------------------------------------------------

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the machine, so that its memory holds still."""
        self._command("stop")
        try:
            yield
        finally:
            self._command("cont")

    def _command(self, name: str) -> None:
        assert self._qmp is not None
        try:
            self._qmp.sendall(json.dumps({"execute": name}).encode() + b"\n")
            while True:
                answer = self._qmp_read()
                if "return" in answer:
                    return
                if "error" in answer:
                    raise LabError(f"QEMU: {name}: {answer['error'].get('desc')}")
        except TimeoutError:
            raise self._lose(f"QEMU does not answer {name}") from None
        except OSError:
            raise self._dead() from None

    def _qmp_read(self) -> dict[str, Any]:
        assert self._qmp is not None
        while b"\n" not in self._qmp_left:
            chunk = self._qmp.recv(1 << 16)
            if not chunk:
                raise self._dead()
            self._qmp_left += chunk
        line, self._qmp_left = self._qmp_left.split(b"\n", 1)
        answer = json.loads(line)
        return answer if isinstance(answer, dict) else {}

    # -- the end -----------------------------------------------------------------------

    def close(self) -> None:
        """End QEMU and remove everything. May be called again."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
        if self._qmp is not None:
            self._qmp.close()
            self._qmp = None
        while self._files:
            os.close(self._files.pop())
        self._ram = -1
