"""Write the distribution of a new architecture."""

__all__ = ["LEVELS", "PAGE_SIZES", "Geometry", "files_of", "write_arch"]

import importlib.metadata
import keyword
import re
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template

from kvmarch.errors import KvmarchError
from kvmarch.hookspecs import API_VERSION, TIERS

PAGE_SIZES = (4096, 16384, 65536)
LEVELS = (2, 3, 4, 5)
MODULES = {
    1: ("formats", "the bits of entries, what the architecture is"),
    2: ("faults", "map, unmap, flush"),
    3: ("notifiers", "change_pte and aging"),
    4: ("memslots", "dirty logging, and memslots that change"),
    5: ("teardown", "nothing is left in the end"),
}
"""The module of each tier, and what it holds."""

OPTIONAL = {1: ("walk",), 2: ("handle_request",), 5: ("destroy_vm",)}
"""Hooks that the modules have beside those of their tiers."""

CHANGES = ("changes", "choices", "scenarios")
"""Hooks of the module ``changes``, which comes with tier 2."""

SCENARIOS = (
    "\n\nWhat the search of interleavings finds in the scenarios is recorded by\n"
    "`pytest --kvmarch-update`, in `found.json` beside them; from then on the tests\n"
    "compare with it."
)
"""A paragraph of the README, for a distribution that has some."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """The tables of a new architecture.

    :param page_size: bytes of a page, and of a table.
    :param levels: of tables, from the root to the pages.
    """

    page_size: int = 4096
    levels: int = 3

    @property
    def page_shift(self) -> int:
        """Return log2 of the bytes of a page."""
        return self.page_size.bit_length() - 1

    @property
    def bits(self) -> int:
        """Return how many bits of a page number one level translates."""
        return self.page_shift - 3

    def check(self) -> None:
        """Refuse what entries of 64 bits cannot hold.

        :raises KvmarchError: with what is possible.
        """
        if self.page_size not in PAGE_SIZES:
            sizes = ", ".join(f"{size >> 10}K" for size in PAGE_SIZES)
            raise KvmarchError(f"--page-size {self.page_size}: there is {sizes}")
        if self.levels not in LEVELS:
            raise KvmarchError(
                f"--levels {self.levels}: there is {LEVELS[0]} to {LEVELS[-1]}"
            )
        reach = self.page_shift + self.levels * self.bits
        if reach > 64:
            raise KvmarchError(
                f"--levels {self.levels} of --page-size {self.page_size} would "
                f"translate {reach} bits; guest addresses have 64"
            )


def files_of(name: str, geometry: Geometry, tier: int) -> dict[str, str]:
    """Return the files of the distribution, by path.

    :param tier: the highest tier whose hooks are written.
    """
    package = f"kvmarch_{name}"
    tiers = range(1, tier + 1)
    hooks = {MODULES[number][0]: _hooks(number) for number in tiers}
    if tier >= 2:
        hooks["changes"] = list(CHANGES)
    words = {
        "name": name,
        "title": name.capitalize(),
        "api": ", ".join(map(str, API_VERSION)),
        "kvmarch": _version(),
        "tier": str(tier),
        "levels": str(geometry.levels),
        "page_size": str(geometry.page_size),
        "page_shift": str(geometry.page_shift),
        "bits": str(geometry.bits),
        "page_value": f"0x{0x12345 << geometry.page_shift | 0b1111:X}",
        "table_value": f"0x{0x12345 << geometry.page_shift | 1:X}",
        "imports": "\n".join(
            _import_of(package, module, hooks[module]) for module in sorted(hooks)
        ),
        "hooks": "\n".join(
            f'    "kvmarch_{hook}",'
            for hook in sorted(hook for names in hooks.values() for hook in names)
        ),
        "files": "\n".join(_rows(package, tier)),
        "scenarios": SCENARIOS if tier >= 2 else "",
    }
    wanted = {
        ".github/workflows/test.yml": "ci.yml",
        ".gitignore": "gitignore",
        "README.md": "README.md",
        "pyproject.toml": "pyproject.toml",
        f"{package}/__init__.py": "init.py",
        "tests/test_contract.py": "test_contract.py",
        "tests/test_formats.py": "test_formats.py",
    }
    wanted |= {
        f"{package}/{MODULES[number][0]}.py": f"{MODULES[number][0]}.py"
        for number in tiers
    }
    if tier >= 2:
        wanted[f"{package}/changes.py"] = "changes.py"
        wanted[f"{package}/scenarios/{name}-maps-what-went.toml"] = "scenario.toml"
        wanted[f"{package}/table.py"] = "table.py"
        wanted["tests/test_operations.py"] = "test_operations.py"
        wanted["tests/test_scenarios.py"] = "test_scenarios.py"
    if tier >= 4:
        wanted["tests/test_memslots.py"] = "test_memslots.py"
    folder = resources.files("kvmarch.kit") / "templates"
    texts = {
        path: Template((folder / f"{source}.in").read_text("utf-8")).substitute(words)
        for path, source in sorted(wanted.items())
    }
    return dict(sorted({**texts, f"{package}/py.typed": ""}.items()))


def _version() -> str:
    version = importlib.metadata.version("kvmarch")
    return ".".join(version.split(".")[:2])


def _hooks(tier: int) -> list[str]:
    return [*TIERS[tier], *OPTIONAL.get(tier, ())]


def _import_of(package: str, module: str, hooks: Iterable[str]) -> str:
    """Return the line that takes a module's hooks in."""
    names = ",\n".join(f"    kvmarch_{hook}" for hook in sorted(hooks))
    lines = f"from {package}.{module} import (\n{names},\n)"
    short = " ".join(line.strip() for line in lines.split("\n"))
    short = short.replace("( ", "").replace(", )", "")
    return short if len(short) <= 88 else lines


def _rows(package: str, tier: int) -> Iterable[str]:
    for number in range(1, tier + 1):
        module, about = MODULES[number]
        yield f"| `{package}/{module}.py` | {about} | {number} |"
    if tier >= 2:
        yield f"| `{package}/table.py` | where entries are | 2 |"
        yield f"| `{package}/changes.py` | what kernels do differently | 2 |"
        yield f"| `{package}/scenarios/` | races and bugs, as scenarios | 2 |"
    yield "| `tests/` | kvmarch's contract, worked values, the scenarios | |"


def write_arch(
    name: str,
    geometry: Geometry,
    tier: int,
    folder: Path | None,
    taken: Iterable[str],
) -> list[Path]:
    """Write the distribution; return its files.

    It is written whole or not at all.

    :param folder: where it goes; ``kvmarch-NAME`` here, if it is left out.
    :param taken: names of architectures that there are.
    :raises KvmarchError: the name or the geometry is none, or the folder is not
        empty.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise KvmarchError(
            f"{name!r} is no name of an architecture; wanted one such as demo"
        )
    if name in taken:
        raise KvmarchError(f"the name {name} is taken by an installed architecture")
    geometry.check()
    folder = folder or Path(f"kvmarch-{name}")
    texts = files_of(name, geometry, tier)
    try:
        _write(folder, texts)
    except OSError as error:
        raise KvmarchError(f"{folder}: {error.strerror}") from None
    return [folder / path for path in texts]


def _write(folder: Path, texts: dict[str, str]) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise KvmarchError(f"{folder}: is there already, and not an empty folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for path, text in texts.items():
            (beside / path).parent.mkdir(parents=True, exist_ok=True)
            (beside / path).write_text(text, "utf-8")
        beside.chmod(0o755)
        beside.replace(folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
