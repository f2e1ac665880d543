"""Descriptions of types, made by hand: where members are, and what is refused."""

import struct

import pytest

from kvmarch.errors import LabError
from kvmarch.lab.btf import Types, kernel_types, module_types
from kvmarch.lab.counters import definition, read_counters
from kvmarch.walk.image import open_image

INT, STRUCT, UNION, ENUM, FUNC, TYPEDEF, CONST, DATASEC = 1, 4, 5, 6, 12, 8, 10, 15


class Maker:
    """A description that grows type by type."""

    def __init__(self, order="<", base=None):
        self.order = order
        self.types = b""
        self.first = base.first + base.count if base else 1
        self.from_ = base.from_ + len(base.names) if base else 0
        self.base = base
        self.names = b"" if base else b"\0"
        self.count = 0

    def name(self, text):
        if not text:
            return 0
        whole = b"\0" + text.encode() + b"\0"
        if self.base and whole in self.base.names:
            return self.base.from_ + self.base.names.index(whole) + 1
        if whole not in b"\0" + self.names:
            self.names += whole[1:]
        return self.from_ + (b"\0" + self.names).index(whole)

    def add(self, kind, name="", refers=0, rows=(), flag=0, more=b""):
        info = flag << 31 | kind << 24 | len(rows)
        self.types += struct.pack(self.order + "III", self.name(name), info, refers)
        self.types += more
        for row in rows:
            self.types += struct.pack(self.order + f"{len(row)}I", *row)
        self.count += 1
        return self.first + self.count - 1

    def struct(self, name, *members, kind=STRUCT, flag=0):
        rows = [(self.name(text), of, bits) for text, of, bits in members]
        return self.add(kind, name, 8, rows, flag)

    def data(self):
        head = struct.pack(
            self.order + "HBBIIIII",
            *(0xEB9F, 1, 0, 24, 0, len(self.types), len(self.types), len(self.names)),
        )
        return head + self.types + self.names


def kernel(order="<"):
    made = Maker(order)
    number = made.add(INT, "int", 4, more=bytes(4))
    made.add(ENUM, "colour", 4, [(made.name("red"), 0)])
    made.add(FUNC, "main", number)
    made.add(DATASEC, ".data", 0, [(number, 0, 4)])
    made.struct("file", ("f_mode", number, 0), ("private_data", number, 64 * 8))
    return made, number


@pytest.mark.parametrize("order", ["<", ">"])
def test_where_a_member_is(order):
    types = Types(kernel(order)[0].data())

    assert types.offset("file", "private_data") == 64
    assert types.offset("file", "f_mode") == 0
    assert types.offset("file", "f_pos") is None
    assert types.offset("kvm", "f_mode") is None
    assert types.offset("colour", "red") is None


def test_members_of_nameless_structures_are_the_outer_ones():
    made, number = kernel()
    inner = made.struct("", ("deep", number, 32), kind=UNION)
    hidden = made.add(CONST, "", inner)
    named = made.struct("named", ("shallow", number, 96))
    made.struct("outer", ("", hidden, 128), ("field", named, 256))
    types = Types(made.data())

    assert types.offset("outer", "deep") == 16 + 4
    assert types.offset("outer", "field") == 32
    assert types.offset("outer", "shallow") is None


def test_bit_fields_have_their_size_beside_the_place():
    made, number = kernel()
    made.struct("bits", ("flag", number, 1 << 24 | 40), flag=1)

    assert Types(made.data()).offset("bits", "flag") == 5


def test_structures_of_one_name_must_agree():
    made, number = kernel()
    made.struct("twin", ("same", number, 64), ("other", number, 128))
    made.struct("twin", ("same", number, 64), ("other", number, 192))
    types = Types(made.data())

    assert types.offset("twin", "same") == 8
    assert types.offset("twin", "other") is None


def module(made, number):
    """Return a module's types: names and types of the kernel's are used."""
    own = Maker(base=made)
    inner = own.struct("", ("generation", number, 0))
    own.struct(
        "kvm",
        ("f_mode", number, 0),
        ("mmu_invalidate_seq", number, 80 * 8),
        ("mmu_notifier_count", number, 88 * 8),
        ("memslots", number, 16 * 8),
    )
    own.struct("kvm_memslots", ("", inner, 24 * 8))
    return own


def test_a_modules_names_continue_the_kernels():
    made, number = kernel()
    base = Types(made.data())
    types = Types(module(made, number).data(), base)

    assert types.offset("kvm", "mmu_invalidate_seq") == 80
    assert types.offset("kvm", "f_mode") == 0
    assert types.offset("file", "private_data") == 64
    assert base.offset("kvm", "mmu_invalidate_seq") is None


def test_the_probe_point_of_the_counters():
    made, number = kernel()
    types = Types(module(made, number).data(), Types(made.data()))

    assert definition(types) == (
        "p:kvmarch/counters kvm_vm_ioctl mmu_invalidate_seq=+80(+64($arg1)):u64 "
        "mmu_invalidate_in_progress=+88(+64($arg1)):u64 "
        "generation=+24(+16(+64($arg1))):u64"
    )
    assert definition(Types(made.data())) is None
    assert definition(Types(Maker().data())) is None


def test_a_line_of_the_trace():
    line = (
        "probe-98 [000] d.... 7.1: counters: (kvm_vm_ioctl+0x0/0xa10 [kvm]) "
        "mmu_invalidate_seq=3 mmu_invalidate_in_progress=0 generation=10"
    )

    assert read_counters(line) == {
        "mmu_invalidate_seq": 3,
        "mmu_invalidate_in_progress": 0,
        "generation": 10,
    }


def elf(section):
    """Return an ELF file of three sections, one with types."""
    names = b"\0.BTF\0.names\0"
    start = 64
    rows = [(0, 0, 0), (1, start, len(section)), (6, start + len(section), len(names))]
    table = start + len(section) + len(names)
    head = bytearray(64)
    head[:6] = b"\x7fELF\x02\x01"
    struct.pack_into("<Q", head, 40, table)
    struct.pack_into("<HHH", head, 58, 64, len(rows), 2)
    blob = bytes(head) + section + names
    for name, offset, size in rows:
        blob += struct.pack("<I20xQQ24x", name, offset, size)
    return blob


def test_the_section_of_a_module():
    made, number = kernel()
    base = Types(made.data())
    file = elf(module(made, number).data())

    found = module_types(file, base)

    assert found.offset("kvm", "memslots") == 16
    assert module_types(file.replace(b".BTF\0", b".btf\0"), base) is None
    with pytest.raises(LabError, match="a module's file is torn"):
        module_types(file[:-80], base)


def test_the_kernels_own_is_the_largest_that_is_whole(tmp_path):
    made, _number = kernel()
    path = tmp_path / "ram"
    small = Maker()
    small.struct("file", ("private_data", 1, 8))
    broken = Maker()
    broken.struct("file", *(("private_data", 1, 8) for _ in range(99)))
    header = broken.data()[:24]
    memory = bytearray(1 << 16)
    for at, data in ((0x1000, small.data()), (0x3008, made.data()), (0x8000, header)):
        memory[at : at + len(data)] = data
    path.write_bytes(bytes(memory))

    with open_image(str(path)) as image:
        assert kernel_types(image).offset("file", "private_data") == 64
    path.write_bytes(bytes(1 << 16))
    with open_image(str(path)) as image:
        assert kernel_types(image) is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x9f\xeb", "is cut off"),
        (bytes(24), "there is no description"),
        (kernel()[0].data()[:-3], "is cut off"),
        (kernel()[0].data()[:31] + b"\x1f" + kernel()[0].data()[32:], "has kind 31"),
    ],
)
def test_what_is_no_description(data, message):
    with pytest.raises(LabError, match=message):
        Types(data)
