"""Lines of scenarios, run on a machine that a test drives."""

import pytest
from altering import check, hook

from kvmarch import ArchVerb, plugins
from kvmarch.errors import ScenarioError


def test_what_the_host_does_is_a_line(bench):
    one = bench()
    one.slot()
    one.access(2, "write")
    before = one.pfn(2)

    one.do("migrate memory=ram page=2")
    assert one.pfn(2) not in {0, before}
    one.do("dontneed memory=ram page=2 pages=1")
    assert (one.pfn(2), one.entry(2)) == (0, 0)
    assert one.pfn(3)
    one.do("dontneed memory=ram")
    assert not any(one.pfn(page) for page in range(one.pages))
    assert one.lost == []


def test_a_line_has_a_result(bench):
    one = bench()
    one.slot(flags=1)
    one.access(3, "write")

    assert one.do("dirty_get id=0") == (0, 0b1000)
    assert one.do("touch memory=ram value=7 pages=2") is None
    assert one.do("ksm_merge memory=ram") == 1
    assert one.pfn(0) == one.pfn(1)


def test_lines_race(bench):
    one = bench()
    one.slot()
    guest = one.actor("vcpu0", "write gfn=1")
    host = one.actor("vmm", "dontneed memory=ram page=1 pages=1")

    one.interleave(guest, host, turn=3)
    assert one.lost == []


def test_caches_streams_and_children(bench):
    one = bench()
    one.slot()

    assert one.do("gpc_map name=shared gfn=1") == 0
    one.do("fork")
    stream = one.actor("stream", "stream memory=ram")
    stream.past("is the stream to go on?")
    one.do("stream_end")
    stream.end()
    assert one.lost == []


def test_an_architectures_own_verbs_are_lines(altered, bench_class):
    seen = []

    async def poke(vm, args):
        seen.append((vm, dict(args)))

    verb = ArchVerb("poke", "Poke.", poke, {"gfn": "int"})
    module = altered(kvmarch_verbs=hook("kvmarch_verbs", (verb,)))
    arch = check(module)
    k = plugins.link(arch, (6, 1))
    one = bench_class(k, arch.info.settle((6, 1), {}), 4)

    one.do("toy.poke gfn=3")
    assert seen == [(one.vm, {"gfn": 3})]
    for text, message in (
        ("toy.fly", "unknown verb 'toy.fly'; of toy there is toy.poke"),
        ("toy.poke gfn=x", "toy.poke gfn: 'x' is no number"),
        ("toy.poke", "toy.poke needs gfn="),
        ("x86.poke gfn=3", "x86.poke is of x86, and this is toy"),
    ):
        with pytest.raises(ScenarioError, match=message):
            one.line(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("fly", r"a line: 'fly': unknown verb 'fly'", id="verb"),
        pytest.param("dontneed memory=rom", "no memory 'rom'; there is ram", id="name"),
        pytest.param("dontneed memory=ram page=16", "ram has no page 16", id="page"),
        pytest.param("read gfn=1 vcpu=1", "no vcpu 1; there is 1", id="vcpu"),
        pytest.param("read gfn", "'gfn' is no argument such as gfn=2", id="argument"),
        pytest.param("", "is no step such as", id="empty"),
    ],
)
def test_a_line_that_is_none_is_refused(bench, text, message):
    with pytest.raises(ScenarioError, match=message):
        bench().line(text)
