"""A stand-in for QEMU with a kernel and the probe in it, run as a program.

What goes wrong is in the environment: ``STAND_IN`` is JSON with ``at``, the number of
the command before which it goes wrong (0: the boot), and ``how``. The folder
``STAND_IN_FOLDER`` gets a line for each command, and the process's number.
"""

import json
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2}}}}
PANIC = "[ 1.0] Kernel panic - not syncing: nobody knows\r\n[ 1.0] Call Trace:\r\n"


def monitor(words):
    text = next(word for word in words if word.startswith("socket,id=qmp,fd="))
    qmp = socket.socket(fileno=int(text.rpartition("=")[2]))
    qmp.sendall(json.dumps(GREETING).encode() + b"\n")
    for _ in qmp.makefile():
        qmp.sendall(b'{"return": {}}\n')


def say(*lines):
    sys.stdout.write("".join(f"{line}\r\n" for line in lines))
    sys.stdout.flush()


def go_wrong(how):
    if how == "hang":
        say("[ 1.0] the last that is heard")
        time.sleep(600)
    if how == "panic":
        say(PANIC)
    if how == "end":
        say("[ 1.0] the last that is heard")
        os._exit(0)
    if how == "die":
        say("the emulator's own words")
        os._exit(1)
    if how == "killed":
        os.kill(os.getpid(), signal.SIGSEGV)


def answer(line):
    verb, *words = line.split()
    if verb == "memory":
        answer.memories += 1
        return [f"@H {answer.memories - 1:x} 7f0000000000"]
    if verb == "frames":
        return [f"@F {number:x} 1000*1000" for number in range(answer.memories)]
    if verb == "run":
        return [f"@C run {words[1]} gpa={words[2]} rc=0 exit=5"]
    if verb == "slot":
        as_id, number, flags, gpa, size = (int(word, 16) for word in words[:5])
        found = f"id={as_id << 16 | number} flags={flags} gpa={gpa:x} size={size:x}"
        return [f"@C slot {found} rc=0 errno=0"]
    if verb == "begin":
        answer.memories = 0
    return []


def main():
    plan = json.loads(os.environ["STAND_IN"])
    folder = Path(os.environ["STAND_IN_FOLDER"])
    (folder / "pid").write_text(str(os.getpid()))
    threading.Thread(target=monitor, args=(sys.argv,), daemon=True).start()
    say("[ 0.1] Linux begins")
    if not plan["at"]:
        go_wrong(plan["how"])
    say("@K 6.1.0-1-amd64 x86_64 1000", *plan.get("also", []), "@.")
    with (folder / "commands").open("a", buffering=1) as log:
        for number, line in enumerate(sys.stdin, 1):
            log.write(line)
            if number == plan["at"]:
                gone = plan["how"] == "gone"
                if not gone:
                    go_wrong(plan["how"])
                say("@# not enough memory", "@X b", "@.")
                continue
            if plan["how"] == "late" and line.startswith("ksm "):
                say("@# KSM is late")
            say(*answer(line.strip()), "@.")


if __name__ == "__main__":
    main()
