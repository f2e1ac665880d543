from itertools import pairwise

import pytest

from kvmarch.page.pack import Packer
from kvmarch.page.player import Camera
from kvmarch.page.state import GROUPS, RowMaker
from kvmarch.page.work import do_job, jobs_of
from kvmarch.plugins import load as load_plugins
from kvmarch.scenarios.cells import How
from kvmarch.scenarios.compare import Choose
from kvmarch.scenarios.file import library, load

PLUGINS = load_plugins()


class Tape:
    """Puts the states of a trace together, as the page does."""

    def __init__(self, trace):
        self.trace = trace
        self.rows, self.tables = {}, {}

    def play(self):
        """Yield each step, None before the first, when its changes are applied."""
        for frame in (self.trace["start"], *self.trace["steps"]):
            for group, label in frame["gone"]:
                del self.rows[group, label]
            for group, label, text in frame["rows"]:
                assert self.rows.get((group, label)) != text
                self.rows[group, label] = text
            for name in frame["freed"]:
                del self.tables[name]
            self.tables.update(frame["tables"])
            yield None if frame is self.trace["start"] else frame


@pytest.fixture(scope="module")
def own():
    """Follow a shipped scenario's own schedule on an installed architecture."""

    def make(name, arch, kernel="v6.1"):
        choose = Choose(arch=(arch,), kernel=(kernel,))
        [job] = jobs_of(load(library()[name]), PLUGINS, choose, How())
        [trace] = do_job(job, PLUGINS)["traces"]
        return trace

    return make


def test_rows_say_what_the_steps_change(raced, do):
    [result] = do(raced)
    [trace] = [t for t in result["traces"] if t["property"] == "counted"]
    tape = Tape(trace)
    label = "counters", "vm.mmu_invalidate_in_progress"

    told = [
        tape.rows[label]
        for step in tape.play()
        if step is not None and any(label[1] in text for text in step["changes"])
    ]

    assert told == ["1"]


def test_locks_are_held_from_the_step_that_takes_them(compared, do):
    tape = Tape(do(compared)[0]["traces"][0])
    held = []

    for step in tape.play():
        lock = tape.rows["locks", "mmu_lock"]
        if step is not None and step["name"].endswith("lock mmu_lock"):
            taken = not step["name"].startswith(("unlock", "read-unlock"))
            held.append((taken, lock))

    assert held
    assert {lock for taken, lock in held if taken} <= {"vmm (write)", "vmm (read)"}
    assert {lock for taken, lock in held if not taken} == {"free"}


def test_entries_and_tlbs_follow_the_guest(compared, do):
    tape = Tape(do(compared)[0]["traces"][0])
    seen = []

    for step in tape.play():
        if step is not None and step["name"] == "guest access":
            entry = tape.rows["entries", "gfn 0x0"]
            cached = [label for group, label in tape.rows if group == "TLBs"]
            seen.append((" page " in entry, any("gfn 0x0," in c for c in cached)))

    # The guest faults, maps, reads gfn 0 and then gfn 2; KSM has taken gfn 0 away.
    assert seen[0] == (False, False)
    assert (True, True) in seen
    assert seen[-1] == (True, True)


def test_every_row_is_of_a_group_that_is_shown(raced, do):
    for trace in do(raced)[0]["traces"]:
        tape = Tape(trace)
        for _step in tape.play():
            assert {group for group, _label in tape.rows} <= set(GROUPS)


def test_neighbours_that_map_on_are_one_row(own):
    tape = Tape(own("huge_page", "x86"))
    labels = set()

    for _step in tape.play():
        labels |= {label for group, label in tape.rows if group == "entries"}

    assert any("-" in label for label in labels)
    assert len(labels) < 60


@pytest.mark.parametrize("arch", sorted(PLUGINS.loaded))
def test_tables_hang_together(own, arch):
    tape = Tape(own("change_pte", arch))
    most = 0

    for _step in tape.play():
        children = [
            row[4] for table in tape.tables.values() for row in table["rows"] if row[4]
        ]
        assert len(set(children)) == len(children)
        assert set(children) <= tape.tables.keys()
        most = max(most, len(children))

    layout = PLUGINS.get(arch).operations.get("walk")
    assert most or layout is None


def test_a_table_entry_changes_in_the_step_that_writes_it(own):
    trace = own("change_pte", "x86")

    written = [
        step
        for step in trace["steps"]
        if any(text.startswith("gfn 0x0:") for text in step["changes"])
    ]

    assert written
    assert all(step["tables"] for step in written)


@pytest.mark.parametrize("name", ["change_pte", "dirty_log", "huge_page"])
def test_rows_that_are_kept_are_those_that_would_be_made_again(own, name, monkeypatch):
    make, compared = RowMaker.rows_of, []

    def rows_of(maker, states):
        rows = make(maker, states)
        again = make(RowMaker(maker.entries), states)
        compared.append((list(rows.items()), list(again.items())))
        return rows

    monkeypatch.setattr(RowMaker, "rows_of", rows_of)
    own(name, "x86")

    assert all(kept == made for kept, made in compared)
    # They were not the same all the time.
    assert any(one != other for (one, _), (other, _) in pairwise(compared))


def test_there_is_a_picture_before_the_first_step_and_after_each(raced, do):
    [result] = do(raced)

    for trace in result["traces"]:
        assert trace["start"]["rows"]
        assert [step["task"] in trace["tasks"] for step in trace["steps"]]


def test_a_schedule_that_goes_round_says_where():
    choose = Choose(arch=("x86",), kernel=("v6.12",), plus=("gpc-range-retry",))
    [job] = jobs_of(load(library()["gpc_stream"]), PLUGINS, choose, How())

    [trace] = do_job(job, PLUGINS)["traces"]

    assert trace["property"] == "ends"
    assert 1 < trace["cycle"] < len(trace["steps"])
    assert [name for name, _sentence in trace["lost"]] == ["ends"]


def test_a_packed_trace_unpacks_to_the_same(raced, do):
    packer = Packer()
    traces = do(raced)[0]["traces"]
    for trace in traces:
        packer.add(trace)

    for trace, packed in zip(traces, packer.traces, strict=True):
        frames = [packed["start"], *packed["steps"]]
        for frame, small in zip((trace["start"], *trace["steps"]), frames, strict=True):
            flat = [packer.texts[n] for n in small.get("s", ())]
            rows = [flat[n : n + 3] for n in range(0, len(flat), 3)]
            assert rows == frame["rows"]
            assert small.get("T", {}).keys() == frame["tables"].keys()
        changes = [
            [packer.texts[n] for n in step.get("c", ())] for step in packed["steps"]
        ]
        assert changes == [step["changes"] for step in trace["steps"]]
        lost = [step.get("x", []) for step in packed["steps"]]
        assert lost == [step["lost"] for step in trace["steps"]]
    assert len(set(packer.texts)) == len(packer.texts)


def test_a_camera_that_saw_nothing_has_no_frames():
    assert Camera().frames == []
