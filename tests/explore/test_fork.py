"""fork() beside other tasks: what it makes is there before the search begins."""

from functools import partial

import pytest
from small import brute_force

from kvmarch import Choice, Kernel, plugins
from kvmarch.explore import programs
from kvmarch.explore.audit import compare_engines
from kvmarch.explore.cells import watched
from kvmarch.explore.programs import SmallProgram
from kvmarch.explore.search import Bounds, explore
from kvmarch.explore.space import Space
from kvmarch.explore.verdict import verdict_of
from kvmarch.kernel import mmap
from kvmarch.kernel.gup import get_user_page
from kvmarch.kernel.mmap import fork
from kvmarch.machine.host import PFN_SHIFT, WRITE, HostMemory, Mm, Page, Vma
from kvmarch.machine.steps import op
from kvmarch.scenarios.cells import cells_of
from kvmarch.scenarios.compare import Choose
from kvmarch.scenarios.file import find, load

HVA = 0x10000


@op(name="write to page")
def write_to(mm, pfn, value):
    mm.host.pages[pfn].content = value
    mm.host.put(pfn)


class Forking(SmallProgram):
    """A process of one page that forks, and writes to it from another thread."""

    def __init__(self, k, forks=1, writes=1):
        super().__init__()
        self.go = self.variable("go")
        self.host = HostMemory(self.world)
        self.mm = Mm(self.world, self.host, "mm", page_shift=12, pmd_order=0)
        self.mm.k = k
        self.mm.add_vma(Vma(HVA, HVA + 0x1000, anon=True))
        self.pfn = self.host.alloc("anon", 0)
        page = self.host.pages[self.pfn]
        page.refs = page.maps = 1
        self.mm.set_pte(HVA >> 12, self.pfn << PFN_SHIFT | WRITE | 1)
        self.mm.prepare_children(forks)
        for number in range(forks):
            self.task(f"fork{number}", self.forking)
        for number in range(writes):
            self.task(f"writer{number}", lambda number=number: self.writing(number))
        self.claim("parent keeps the page", lambda: self.now() == self.pfn)
        self.claim(
            "child sees nothing new", lambda: not self.host.pages[self.pfn].content
        )
        self.claim("not shared", lambda: self.host.pages[self.now()].maps == 1)
        self.claim("not writable", lambda: not self.mm.pte(HVA >> 12) & WRITE)

    def now(self):
        return self.mm.pte(HVA >> 12) >> PFN_SHIFT

    async def forking(self):
        await programs.load(self.go)
        await fork(self.mm)

    async def writing(self, number):
        await programs.load(self.go)
        pfn = await get_user_page(self.mm, HVA >> 12, True)
        if pfn >= 0:
            await write_to(self.mm, pfn, number + 1)

    def roots(self):
        return [self.mm, self.host, *super().roots()]

    def pieces(self):
        return (Page,)

    def fixed(self):
        return *super().fixed(), Choice, Kernel, Vma


@pytest.fixture
def k(toy):
    return plugins.link(toy, (6, 1))


def test_it_agrees_with_brute_force(k):
    brute = brute_force(partial(Forking, k))
    search = explore(Forking(k))

    assert brute.schedules > 20
    assert {name: found.length for name, found in search.found.items()} == brute.lost
    for name in brute.lost:
        assert verdict_of(search, name).verdict == brute.verdict(name)
    # Written before, the page is shared with what it holds; after, it is copied.
    assert set(brute.lost) == {
        "parent keeps the page",
        "child sees nothing new",
        "not shared",
        "not writable",
    }
    assert {brute.verdict(name) for name in brute.lost} == {"sometimes"}


@pytest.mark.parametrize(("forks", "writes"), [(1, 1), (2, 1)])
def test_the_engines_agree(k, forks, writes):
    comparison = compare_engines(
        Forking(k, forks, writes), bounds=Bounds(states=20_000)
    )

    assert comparison.differences == []


def test_every_child_is_one_of_its_own(k):
    program = Forking(k, forks=2, writes=0)
    search = explore(program)

    assert program.mm.forks == 0
    assert len(search.ends) == 1
    assert search.found.keys() == {"not shared"}


def test_states_are_what_their_schedules_lead_to(k):
    program = Forking(k)
    space = Space(program)
    with watched(space.open()) as log:
        space.start(log)
        todo = [space.initial]
        for state in todo:
            for task in range(space.count):
                change = space.change(state, task)
                if isinstance(change, int) and state + change not in space.parents:
                    space.parents[state + change] = state
                    todo.append(state + change)
        differences = [space.differences(state) for state in space.parents]

    assert [found for found in differences if found] == []


@pytest.mark.parametrize(
    ("told", "lost"),
    [
        pytest.param(True, set(), id="as it is"),
        pytest.param(False, {"stale-permission"}, id="without the bracket"),
    ],
)
@pytest.mark.parametrize("arch", ["arm64", "ppc", "x86"])
def test_a_guest_that_writes_meanwhile_is_told(monkeypatch, arch, told, lost):
    async def tell_nobody(mm, start, end):
        pass

    if not told:
        monkeypatch.setattr(mmap, "mmu_notifier_invalidate_range_start", tell_nobody)
        monkeypatch.setattr(mmap, "mmu_notifier_invalidate_range_end", tell_nobody)
    found = plugins.load(only=(arch,))
    choose = Choose(arch=(arch,), kernel=("v6.1",))
    cell = next(iter(cells_of(load(find("fork_cow")), found, choose)))[0]
    search = explore(cell.program(found))

    assert set(search.found) - {"copied"} == lost
