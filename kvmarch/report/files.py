"""Files that are written whole or not at all."""

__all__ = ["check_target", "write_whole"]

import errno
import os
import tempfile
from pathlib import Path

from kvmarch.errors import KvmarchError


def check_target(path: Path) -> None:
    """Find out whether a file could be written, before the work whose result it takes.

    :raises KvmarchError: it could not, as far as can be seen.
    """
    folder = path.parent
    if path.is_dir():
        raise KvmarchError(f"{path}: is a directory; wanted a file")
    if not folder.is_dir():
        raise KvmarchError(f"{path}: there is no directory {folder}")
    # A device is written to, any other file is replaced.
    device = path.exists() and not path.is_file()
    try:
        place = path if device else _real(path).parent
    except OSError as error:
        raise KvmarchError(f"{path}: {error.strerror}") from None
    if not os.access(place, os.W_OK):
        raise KvmarchError(f"{path}: {os.strerror(errno.EACCES)}")


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is never left half written.

    Where a symbolic link stands, what it leads to is replaced.

    :raises KvmarchError: it cannot be written.
    """
    temporary = ""
    try:
        if path.is_dir():
            raise KvmarchError(f"{path}: is a directory; wanted a file")
        if path.exists() and not path.is_file():
            # A device such as /dev/stdout: there is nothing to replace.
            path.write_text(text, "utf-8")
            return
        real = _real(path)
        handle, temporary = tempfile.mkstemp(dir=real.parent, prefix=f".{real.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        mode = path.stat().st_mode & 0o7777 if path.exists() else 0o666 & ~_umask()
        Path(temporary).chmod(mode)
        Path(temporary).replace(real)
        temporary = ""
    except OSError as error:
        raise KvmarchError(f"{path}: {error.strerror}") from None
    finally:
        # Also when somebody presses Ctrl-C.
        if temporary:
            Path(temporary).unlink(missing_ok=True)


def _real(path: Path) -> Path:
    """Return where a path leads through symbolic links."""
    return Path(os.path.realpath(path))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
