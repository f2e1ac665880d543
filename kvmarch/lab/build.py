"""The probe: one static program for each architecture, compiled when it is needed."""

__all__ = ["probe"]

import hashlib
import shutil
import subprocess
import tempfile
from importlib import resources
from pathlib import Path

from kvmarch.arch import LabMachine
from kvmarch.errors import LabError
from kvmarch.lab.kernels import cache_folder

SOURCES = ("main.c", "init.c", "steps.c", "memory.c")
FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wno-unused-result", "-static")


def probe(machine: LabMachine) -> bytes:
    """Return the program, compiled or from the cache.

    :raises LabError: there is no compiler, with what to install; or it fails.
    """
    folder = Path(str(resources.files("kvmarch.lab") / "probe"))
    guest = Path(machine.guest)
    try:
        parts = [path.read_bytes() for path in (*sorted(folder.glob("*.[ch]")), guest)]
    except OSError as error:
        raise LabError(f"{error.filename}: {error.strerror}") from None
    digest = hashlib.sha256(b"\0".join(parts) + " ".join(FLAGS).encode())
    name = f"{machine.debian}-{digest.hexdigest()[:16]}"
    place = cache_folder() / "probes" / name
    if place.is_file():
        return place.read_bytes()
    compiler = shutil.which(machine.compiler)
    if compiler is None:
        packages = " ".join(machine.compiler_packages)
        raise LabError(
            f"no compiler {machine.compiler} for the probe; apt install {packages}"
        )
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".build-") as temporary:
        made = Path(temporary) / "probe"
        done = subprocess.run(  # noqa: S603 - our own command
            [
                compiler,
                *FLAGS,
                f"-I{folder}",
                *(str(folder / source) for source in SOURCES),
                str(guest),
                "-o",
                str(made),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            packages = " ".join(machine.compiler_packages)
            raise LabError(
                f"{machine.compiler} cannot compile the probe (is all of {packages} "
                f"installed?)",
                done.stderr,
            )
        made.rename(place)
    return place.read_bytes()
