"""Measure walks of images, beside a bare numpy walk and volatility3.

    pip install 'kvmarch[lab]' volatility3
    python benchmarks/walk.py               every format
    python benchmarks/walk.py --only x86    those whose name has this in it

For each format a guest of 4 GiB is mapped with base pages, its tables made of dense
ones and written to an image. Measured are: the summary of the whole tree, the
translation of a million random addresses, and one address after the other in plain
Python. The yardsticks: the least that numpy can do (index, gather, mask; nothing is
checked, and it knows the one format), and, where the entries are the processor's own,
volatility3's Intel layer on the same file. All are of one thread, in processor time, so
that other work counts little. Quote ratios of one run, not single times.
"""

import argparse
import importlib.util
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kvmarch import plugins
from kvmarch.format.table import TablePool
from kvmarch.format.walk import WalkLayout, WalkRule
from kvmarch.testing.bench import Bench
from kvmarch.walk.contents import tally
from kvmarch.walk.image import Image, Region, open_image
from kvmarch.walk.path import Walker
from kvmarch.walk.tree import Tree
from kvmarch.walk.write import write_tables

FORMATS: dict[str, tuple[str, tuple[int, int], dict[str, str]]] = {
    "x86 npt 4": ("x86", (6, 12), {"paging": "npt"}),
    "x86 npt 5": ("x86", (6, 12), {"paging": "npt", "levels": "5"}),
    "x86 ept 4": ("x86", (6, 12), {}),
    "x86 ept 4 tracked": ("x86", (6, 12), {"ad": "0"}),
    "arm64 4K": ("arm64", (6, 12), {"ipa": "48", "parange": "48"}),
    "arm64 4K concatenated": ("arm64", (6, 12), {}),
    "arm64 4K LPA2": (
        "arm64",
        (6, 12),
        {"lpa2": "1", "ipa": "52", "parange": "52"},
    ),
    "arm64 16K": ("arm64", (6, 12), {"page_size": "16K"}),
    "arm64 64K": ("arm64", (6, 12), {"page_size": "64K"}),
    "ppc radix 64K": ("ppc", (6, 12), {}),
    "ppc radix 4K": ("ppc", (6, 12), {"page_size": "4K"}),
    "mips 4K": ("mips", (6, 12), {}),
}
"""By name: architecture, release, options. Four levels, but where it says else."""

NATIVE = "x86 npt 4"
"""Entries that a processor's own walk understands."""
GUEST = 4 << 30
BASE = 0x1000_0000
FIRST = 0x1_0000_0000
"""Where the guest's memory is in the host's."""
MANY = 1_000_000
FEW = 10_000
"""Addresses that are walked one by one."""
CHUNK = 1 << 15


@dataclass
class Sample:
    """An image of one format."""

    name: str
    layout: WalkLayout
    path: Path
    root: int
    entries: int


def placed(rule: WalkRule, address: Any) -> Any:
    """Return addresses at their place in an entry."""
    entry = address & np.uint64(0)
    for mask, move in rule.address:
        shift = np.uint64(abs(move))
        part = address >> shift if move >= 0 else address << shift
        entry = entry | part & np.uint64(mask)
    return entry


def make(name: str, folder: Path) -> Sample:
    """Map a guest with base pages: entries are like those that the model writes."""
    arch_name, release, given = FORMATS[name]
    arch = plugins.load(only=(arch_name,)).get(arch_name)
    k, options = plugins.link(arch, release), arch.info.settle(release, given)
    layout = k.walk.fn(k, options)
    one = Bench(k, options, 1)
    one.slot()
    one.access(0, "write")
    patterns = {}
    for table in one.vm.tables.live.values():
        level = layout.by_level[table.level]
        entry = table.get(0)
        rule = next(r for r in level.rules if entry & r.mask == r.value)
        away = sum(mask for mask, _ in rule.address)
        patterns[table.level] = rule, entry & ~away, table.empty
    pool = TablePool(dense=True, base=BASE)
    counts = 0

    def build(depth: int, base: int) -> int:
        nonlocal counts
        level = layout.levels[depth]
        rule, bits, empty = patterns[level.level]
        used = min(1 << level.bits, -(-(GUEST - base) >> level.shift))
        table = pool.alloc(1 << level.bits, level.level, base, empty=empty)
        counts += 1 << level.bits
        if depth + 1 < len(layout.levels):
            below = [build(depth + 1, base + (n << level.shift)) for n in range(used)]
            to = np.array(below, np.uint64)
        else:
            to = np.arange(used, dtype=np.uint64) << np.uint64(level.shift)
            to += np.uint64(FIRST + base)
        cells = np.frombuffer(table.cells, np.uint64)
        cells[:used] = placed(rule, to) | np.uint64(bits)
        return int(table.pa)

    root = build(0, 0)
    path = folder / name.replace(" ", "-")
    order = "big" if layout.byteorder == "big" else "little"
    write_tables(path, pool.live.values(), order, BASE)
    return Sample(name, layout, path, root, counts)


def bare(sample: Sample, image: Image) -> Callable[[Any], Any]:
    """Return the walk that does nothing but walk."""
    kind = ">u8" if sample.layout.byteorder == "big" else "<u8"
    words = np.frombuffer(image.buffer, kind)
    steps = []
    for depth, level in enumerate(sample.layout.levels):
        role = "table" if depth + 1 < len(sample.layout.levels) else "leaf"
        rule = next(r for r in level.rules if r.role == role)
        steps.append((np.uint64(level.shift), np.uint64((1 << level.bits) - 1), rule))
    inside = np.uint64((1 << sample.layout.levels[-1].shift) - 1)
    base, three = np.uint64(BASE), np.uint64(3)

    def walk(gpas: Any) -> Any:
        out = np.empty_like(gpas)
        for start in range(0, len(gpas), CHUNK):
            gpa = gpas[start : start + CHUNK]
            pa = np.full(len(gpa), sample.root, np.uint64)
            for shift, mask, rule in steps:
                entry = words[(pa - base >> three) + (gpa >> shift & mask)]
                entry = entry.astype(np.uint64, copy=False)
                pa = np.uint64(0)
                for bits, move in rule.address:
                    part = entry & np.uint64(bits)
                    if move:
                        away = np.uint64(abs(move))
                        part = part << away if move > 0 else part >> away
                    pa = pa | part
            out[start : start + CHUNK] = pa | gpa & inside
        return out

    return walk


def best(what: Callable[[], Any], times: int = 5) -> float:
    """Return the shortest time, in seconds."""
    seconds = []
    for _ in range(times):
        begun = time.process_time()
        what()
        seconds.append(time.process_time() - begun)
    return min(seconds)


def volatility(
    sample: Sample, folder: Path, gpas: list[int]
) -> tuple[float, list[int]]:
    """Return seconds and results of volatility3's layer; it wants memory from 0 on."""
    from volatility3.framework import contexts
    from volatility3.framework.layers import intel, physical

    path = folder / "flat"
    with path.open("wb") as file:
        file.seek(BASE)
        file.write(sample.path.read_bytes())
        file.truncate(FIRST + GUEST)
    context = contexts.Context()
    context.config["file.location"] = path.as_uri()
    context.add_layer(physical.FileLayer(context, "file", "memory"))
    context.config["walk.memory_layer"] = "memory"
    context.config["walk.page_map_offset"] = sample.root
    layer = intel.Intel32e(context, "walk", "guest")
    begun = time.process_time()
    found = [layer.translate(gpa)[0] for gpa in gpas]
    return time.process_time() - begun, found


def measure(sample: Sample) -> dict[str, float]:
    """Return millions per second: entries in the summary and by hand, addresses."""
    random = np.random.default_rng(1)
    gpas = random.integers(0, GUEST, MANY, dtype=np.uint64)
    with open_image(str(sample.path), [Region(BASE, None, 0)]) as image:
        tree = Tree(image, sample.layout, sample.root)
        walk = bare(sample, image)
        expected = gpas + np.uint64(FIRST)
        assert (walk(gpas) == expected).all()
        assert (tree.translate(gpas).pa == expected).all()
        leaves = GUEST >> sample.layout.levels[-1].shift
        assert sum(tally(tree).values()) == leaves
        # In turn, so that both see the machine as it is.
        pairs = [
            (best(lambda: walk(gpas), 1), best(lambda: tree.translate(gpas), 1))
            for _ in range(7)
        ]
        walker = Walker(image, sample.layout, sample.root)
        some = gpas[:FEW].tolist()
        by_hand = best(lambda: deque(map(walker.follow, some), 0), 7)
        return {
            "summary": sample.entries / best(lambda: tally(tree)) / 1e6,
            "bare": MANY / min(b for b, _ in pairs) / 1e6,
            "translate": MANY / min(t for _, t in pairs) / 1e6,
            "by hand": FEW * len(sample.layout.levels) / by_hand / 1e6,
        }


def main() -> None:
    """Print one row per format, in millions per second."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="part of a format's name")
    only = parser.parse_args().only
    print(
        f"{'millions per second':24}{'summary':>10}{'bare':>8}{'translate':>11}"
        f"{'ratio':>7}{'by hand':>9}"
    )
    with tempfile.TemporaryDirectory() as folder:
        for name in FORMATS:
            if only not in name:
                continue
            sample = make(name, Path(folder))
            got = measure(sample)
            ratio = got["translate"] / got["bare"]
            print(
                f"{name:24}{got['summary']:10.0f}{got['bare']:8.1f}"
                f"{got['translate']:11.1f}{ratio:7.2f}{got['by hand']:9.2f}"
            )
            if name == NATIVE:
                beside(sample, Path(folder), got["translate"])
            sample.path.unlink()


def beside(sample: Sample, folder: Path, ours: float) -> None:
    """Print volatility3's figure for the same addresses."""
    if importlib.util.find_spec("volatility3") is None:
        print("  volatility3 is not installed", file=sys.stderr)
        return
    gpas = np.random.default_rng(1).integers(0, GUEST, FEW, dtype=np.uint64).tolist()
    seconds, found = volatility(sample, folder, gpas)
    assert found == [gpa + FIRST for gpa in gpas]
    theirs = FEW / seconds / 1e6
    print(f"  volatility3 {theirs:.3f}: {ours / theirs:.0f} times")


if __name__ == "__main__":
    main()
