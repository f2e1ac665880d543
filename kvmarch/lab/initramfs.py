"""Initial file systems: a cpio archive in the format newc, made in memory."""

__all__ = ["initramfs"]

import stat
from collections.abc import Mapping

_CONSOLE = (5, 1)
"""Device numbers of /dev/console."""


class _Archive:
    """A newc archive: each file is a header in hexadecimal, a name and contents."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._inode = 0

    def add(
        self,
        name: str,
        mode: int,
        data: bytes = b"",
        device: tuple[int, int] = (0, 0),
    ) -> None:
        """Add one file, folder or device."""
        self._inode += 1
        path = name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        fields = (
            self._inode,
            mode,
            0,
            0,
            links,
            0,
            len(data),
            0,
            0,
            *device,
            len(path),
            0,
        )
        header = b"070701" + b"".join(b"%08x" % field for field in fields)
        self._parts.append(_padded(header + path) + _padded(data))

    def done(self) -> bytes:
        """Return the archive."""
        self._inode = -1
        self.add("TRAILER!!!", 0)
        return b"".join(self._parts)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def initramfs(
    program: bytes,
    modules: Mapping[str, tuple[bytes, str]],
    parameters: tuple[str, ...],
    filters: Mapping[str, str],
) -> bytes:
    """Return the archive that the lab boots: one program, modules, and what to load.

    The program is ``/init`` and everything else; there is no shell.

    :param program: a static program.
    :param modules: by name, in the order of loading: contents and arguments.
    :param parameters: the parameters of modules that the program tells.
    :param filters: of trace events, by event.
    """
    archive = _Archive()
    for folder in ("dev", "proc", "sys", "modules"):
        archive.add(folder, stat.S_IFDIR | 0o755)
    archive.add("dev/console", stat.S_IFCHR | 0o600, device=_CONSOLE)
    archive.add("init", stat.S_IFREG | 0o755, program)
    lines = []
    for name, (data, arguments) in modules.items():
        archive.add(f"modules/{name}.ko", stat.S_IFREG | 0o644, data)
        lines.append(f"{name}.ko {arguments}".strip())
    kept = [f"{event} {text}" for event, text in filters.items()]
    for name, text in (
        ("order", lines),
        ("parameters", list(parameters)),
        ("filters", kept),
    ):
        content = "".join(f"{line}\n" for line in text).encode()
        archive.add(f"modules/{name}", stat.S_IFREG | 0o644, content)
    return archive.done()
