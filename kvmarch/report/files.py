"""Files that are written whole or not at all."""

__all__ = ["write_whole"]

import os
import tempfile
from pathlib import Path

from kvmarch.errors import KvmarchError


def write_whole(path: Path, text: str) -> None:
    """Write a file so that it is never left half written.

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
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        mode = path.stat().st_mode & 0o7777 if path.exists() else 0o666 & ~_umask()
        Path(temporary).chmod(mode)
        Path(temporary).replace(path)
        temporary = ""
    except OSError as error:
        raise KvmarchError(f"{path}: {error.strerror}") from None
    finally:
        # Also when somebody presses Ctrl-C.
        if temporary:
            Path(temporary).unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
