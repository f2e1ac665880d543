"""Recordings: what they say, and that every refusal names file and place."""

import json
import re

import pytest

from kvmarch.errors import RecordingError
from kvmarch.recordings.read import LeafTable, Look, Recording, Stage, load, shipped

FULL = {
    "arch": "toy",
    "kernel": "6.1.0-50-toy",
    "page_size": 4096,
    "module_params": {"kvm.mmu": "Y"},
    "scenario": "tour",
    "stages": [
        {
            "name": "fault",
            "host_pfns": {"0x0": "0x41ea3", "0x1": "0x0"},
            "leaf_tables": [
                {
                    "pa": "0x43433000",
                    "entries_from_first_gfn": ["0x40000041ea37ff", "0x0"],
                }
            ],
            "console": ["run ld gpa=10 rc=0 exit=6"],
            "events": [{"task": "probe", "event": "kvm_mmio", "text": "mmio write"}],
            "events_omitted": 3,
        },
        {"name": "slot_bad", "host_pfns": None, "leaf_tables": None},
    ],
}


def changed(*path, **fields):
    """Return the recording with fields of one object changed; ``...`` takes one out."""
    copy = json.loads(json.dumps(FULL))
    table = copy
    for key in path:
        table = table[key]
    for name, value in fields.items():
        if value is ...:
            del table[name]
        else:
            table[name] = value
    return copy


@pytest.fixture
def write(tmp_path):
    def make(raw):
        path = tmp_path / "rec.json"
        path.write_text(raw if isinstance(raw, str) else json.dumps(raw), "utf-8")
        return path

    return make


def test_everything_that_a_recording_says_is_read(write):
    assert load(write(FULL)) == Recording(
        "rec.json",
        "toy",
        "6.1.0-50-toy",
        4096,
        {"kvm.mmu": "Y"},
        (
            Stage(
                "fault",
                Look(
                    {0: 0x41EA3, 1: 0},
                    (LeafTable(0x43433000, (0x40000041EA37FF, 0)),),
                ),
                (("kvm_mmio", "mmio write"),),
                ("run ld gpa=10 rc=0 exit=6",),
                3,
            ),
            Stage("slot_bad", None, (), (), 0),
        ),
    )


STAGE = ("stages", 0)
TABLE = (*STAGE, "leaf_tables", 0)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        pytest.param("{", "line 1: not JSON: Expecting property name", id="not-json"),
        pytest.param("{\n\n]", "line 3: not JSON:", id="not-json-line"),
        pytest.param("[" * 100_000, "not JSON: ", id="deep"),
        pytest.param('{"a": ' + "9" * 5000 + "}", "not JSON: ", id="long"),
        pytest.param("[]", "not a recording: the file is no object", id="no-object"),
        pytest.param("{}", "stages is missing", id="empty"),
        pytest.param(changed(arch=...), "arch is missing", id="arch"),
        pytest.param(changed(arch=3), "arch: 3 is no str", id="arch-kind"),
        pytest.param(changed(kernel=...), "kernel is missing", id="kernel"),
        pytest.param(changed(stages={}), "stages: {} is no list", id="stages"),
        pytest.param(changed(page_size=...), "page_size is missing", id="no-page-size"),
        pytest.param(
            changed(page_size=3000),
            "page_size: 3000 is no power of two from 4096 on",
            id="page-size",
        ),
        pytest.param(
            changed(page_size=1024),
            "page_size: 1024 is no power of two from 4096 on",
            id="small-page",
        ),
        pytest.param(
            changed(page_size="4096"), "page_size: '4096' is no int", id="page-text"
        ),
        pytest.param(
            changed(module_params=[]), "module_params: [] is no dict", id="parameters"
        ),
        pytest.param(
            changed(stages=[3]), "stages[0].name: the value around it", id="stage"
        ),
        pytest.param(
            changed(*STAGE, name=...), "stages[0].name is missing", id="stage-name"
        ),
        pytest.param(
            changed("stages", 1, name=5), "stages[1].name: 5 is no str", id="stage-1"
        ),
        pytest.param(
            changed(*STAGE, host_pfns=[1]),
            "stages[0].host_pfns: [1] is no dict",
            id="host-pfns",
        ),
        pytest.param(
            changed(*STAGE, host_pfns={"0x0": "page"}),
            "stages[0].host_pfns: 'page' is no hexadecimal number",
            id="pfn",
        ),
        pytest.param(
            changed(*STAGE, host_pfns={"0x0": 3}),
            "stages[0].host_pfns: 3 is no hexadecimal number",
            id="pfn-number",
        ),
        pytest.param(
            changed(*STAGE, host_pfns={"gfn": "0x1"}),
            "stages[0].host_pfns: 'gfn' is no hexadecimal number",
            id="gfn",
        ),
        pytest.param(
            changed(*STAGE, leaf_tables={"pa": 1}),
            "stages[0].leaf_tables: {'pa': 1} is no list",
            id="tables",
        ),
        pytest.param(
            changed(*STAGE, leaf_tables=[1]),
            "stages[0].pa: the value around it is no object",
            id="table",
        ),
        pytest.param(changed(*TABLE, pa=...), "stages[0].pa is missing", id="no-pa"),
        pytest.param(
            changed(*TABLE, pa="here"),
            "stages[0].leaf_tables.pa: 'here' is no hexadecimal number",
            id="pa",
        ),
        pytest.param(
            changed(*TABLE, entries_from_first_gfn=["0x1" + "0" * 16]),
            "stages[0].leaf_tables.entries_from_first_gfn: 0x10000000000000000 is no "
            "64-bit value",
            id="65-bits",
        ),
        pytest.param(
            changed(*TABLE, entries_from_first_gfn=["-1"]),
            "stages[0].leaf_tables.entries_from_first_gfn: -1 is no 64-bit value",
            id="negative",
        ),
        pytest.param(
            changed(*TABLE, entries_from_first_gfn=4),
            "stages[0].entries_from_first_gfn: 4 is no list",
            id="entries",
        ),
        pytest.param(
            changed(*STAGE, events=[{"event": "x"}]),
            "stages[0].text is missing",
            id="event",
        ),
        pytest.param(
            changed(*STAGE, events="x"), "stages[0].events: 'x' is no list", id="events"
        ),
        pytest.param(
            changed(*STAGE, console="x"),
            "stages[0].console: 'x' is no list",
            id="console",
        ),
        pytest.param(
            changed(*STAGE, events_omitted="x"),
            "stages[0].events_omitted: 'x' is no int",
            id="omitted",
        ),
    ],
)
def test_a_refusal_names_file_and_place(write, raw, message):
    path = write(raw)

    with pytest.raises(
        RecordingError, match=re.escape(f"{path}: {message}")
    ) as refused:
        load(path)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(RecordingError, match=r"none\.json: No such file or directory"):
        load(tmp_path / "none.json")


def test_a_file_that_is_no_text(tmp_path):
    path = tmp_path / "rec.json"
    path.write_bytes(b'{"arch": "\xff"}')

    with pytest.raises(RecordingError, match=r"rec\.json: not UTF-8 at byte 10"):
        load(path)


@pytest.mark.parametrize("path", shipped(), ids=lambda path: path.stem)
def test_every_shipped_recording_loads(path):
    recording = load(path)

    assert recording.name == path.name
    assert recording.stages[0].look is not None
    assert recording.page_size in {4096, 65536}


def test_four_recordings_are_shipped():
    assert [path.stem for path in shipped()] == [
        "amd64-5.10",
        "amd64-6.1",
        "arm64-6.1",
        "ppc64el-6.1",
    ]


def test_the_labs_lie_in_a_folder_of_their_own(tmp_path):
    (tmp_path / "lab").mkdir()
    for name in ("a-tour.json", "lab/a-lab.json"):
        (tmp_path / name).write_text("{}")

    few = shipped((str(tmp_path),))
    all_ = shipped((str(tmp_path),), everything=True)

    assert {path.name for path in few if path.parent == tmp_path} == {"a-tour.json"}
    assert tmp_path / "lab" / "a-lab.json" not in few
    assert tmp_path / "lab" / "a-lab.json" in all_
    assert len(all_) - len(few) == 49
