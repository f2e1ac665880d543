"""A VM whose tables lie in an image, among other tables."""

from types import SimpleNamespace

import pytest

from kvmarch import plugins
from kvmarch.lab.root import Known
from kvmarch.testing.bench import Bench
from kvmarch.walk.image import Region, open_image
from kvmarch.walk.write import write_tables

BASE = 0x1000_0000
ROOM = 64 * 4096
"""Memory behind the VM's tables, for other tables."""


@pytest.fixture
def x86():
    """A VM of 16 pages, four of them touched; its tables lie in an image."""
    arch = plugins.load(only=("x86",)).get("x86")
    k = plugins.link(arch, (6, 1))
    options = arch.info.settle((6, 1), {"paging": "npt"})
    one = Bench(k, options, 16)
    assert one.slot() == 0
    for gfn in (1, 2, 3, 7):
        one.access(gfn, "write")
    return SimpleNamespace(
        one=one,
        k=k,
        info=arch.info,
        layout=k.walk.fn(k, options),
        known=Known({gfn: one.pfn(gfn) for gfn in range(16)}, {1, 2, 3, 7}),
        root=next(t.pa for t in one.vm.tables.live.values() if t.level == 4),
    )


class Memory:
    """The VM's tables in a file, and room for others."""

    def __init__(self, path, one):
        self.path = path
        size = write_tables(path, one.vm.tables.live.values(), "little", BASE)
        self.next = BASE + size
        with path.open("r+b") as file:
            file.truncate(size + ROOM)
        self.vm_tables = list(one.vm.tables.live.values())

    def put(self, pa, value):
        with self.path.open("r+b") as file:
            file.seek(pa - BASE)
            file.write(value.to_bytes(8, "little"))

    def copy(self, top):
        """Copy the VM's tables; the root's entry moves to an index."""
        moved = {}
        for table in self.vm_tables:
            moved[table.pa] = self.next
            self.next += 4096
        for table in self.vm_tables:
            for index, value in enumerate(table.copy(0, table.size)):
                frame = value & 0x3FFF_FFFF_F000
                new = value - frame + moved[frame] if frame in moved else value
                at = top if table.level == 4 and not index else index
                if new:
                    self.put(moved[table.pa] + at * 8, new)
        return {table.level: moved[table.pa] for table in self.vm_tables}

    def open(self):
        return open_image(str(self.path), [Region(BASE, None, 0)])


@pytest.fixture
def memory(tmp_path, x86):
    return Memory(tmp_path / "ram", x86.one)
