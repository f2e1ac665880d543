"""Scenario files that are refused: every refusal names file and key."""

import re

import pytest

from kvmarch.errors import ScenarioError
from kvmarch.scenarios.file import load

BASE = """
title = "A title"
{top}

[vm]
memory = [{{ name = "ram", pages = 4 }}]
{vm}

[[task]]
name = "vmm"
steps = [{steps}]
{task}
{rest}
"""


def base(top="", vm="", steps="", task="", rest=""):
    return BASE.format(top=top, vm=vm, steps=steps, task=task, rest=rest)


def memory(row):
    text = base().replace('[{ name = "ram", pages = 4 }]', row)
    assert row in text
    return text


def column(text):
    return base(rest=f"[[column]]\n{text}")


def expect(text):
    both = f'[[column]]\nname = "c"\nshow = "violations"\n[[expect]]\n{text}'
    return base(rest=both)


TWICE = '[[verdict]]\nkernel = "v6.1"\nverdict = "never"\nbecause = "{}"\n'

REFUSED = [
    pytest.param(
        base(rest=TWICE.format("one") + TWICE.format("another")),
        "verdict[1]: says what another one says",
        id="verdict-twice",
    ),
    pytest.param("title = ", "not TOML: Invalid value", id="not-toml"),
    pytest.param("a = " + "[" * 5000, "not TOML: ", id="deep"),
    pytest.param("a = " + "9" * 5000, "not TOML: ", id="long"),
    pytest.param("[[task]]\nname = 'a'\nsteps = []", "title: is missing", id="title"),
    pytest.param(base(top="tags = 3"), "tags: 3 is int, not list", id="tags"),
    pytest.param(base(top="tags = [3]"), "tags[0]: 3 is int, not str", id="tag"),
    pytest.param(base(top="source = []"), "source: [] is list, not str", id="source"),
    pytest.param(
        base(top="colour = 1"), "colour: unknown key; there is title", id="unknown-key"
    ),
    pytest.param(base(top='watch = ["0"]'), "watch[0]: '0' is str, not int", id="gfn"),
    pytest.param(base(top="watch = [-1]"), "watch[0]: -1 is less than 0", id="gfn-1"),
    pytest.param(base(vm="vcpus = 'a'"), "vm.vcpus: 'a' is str, not int", id="vcpus"),
    pytest.param(base(vm="vcpus = true"), "vm.vcpus: True is bool, not int", id="bool"),
    pytest.param(base(vm="vcpus = 0"), "vm.vcpus: 0 is less than 1", id="no-vcpu"),
    pytest.param(
        base(vm="cpus = 1"), "vm.cpus: unknown key; there is count, vcpus", id="vm-key"
    ),
    pytest.param("title = 't'\nvm = 3", "vm: 3 is int, not dict", id="vm"),
    pytest.param(memory("[3]"), "vm.memory[0]: 3 is int, not dict", id="memory"),
    pytest.param(
        memory("[{ pages = 1 }]"), "vm.memory[0].name: is missing", id="memory-name"
    ),
    pytest.param(
        memory('[{ name = "ram" }]'),
        "vm.memory[0]: needs either pages or mib",
        id="no-size",
    ),
    pytest.param(
        memory('[{ name = "ram", pages = 1, mib = 1 }]'),
        "vm.memory[0]: needs either pages or mib",
        id="two-sizes",
    ),
    pytest.param(
        memory('[{ name = "ram", pages = -4 }]'),
        "vm.memory[0]: needs either pages or mib, more than 0",
        id="negative-size",
    ),
    pytest.param(
        memory('[{ name = "ram", pages = 1, huge = 1 }]'),
        "vm.memory[0].huge: 1 is int, not bool",
        id="memory-flag",
    ),
    pytest.param(
        memory('[{ name = "ram", pages = 1, size = 1 }]'),
        "vm.memory[0].size: unknown key; there is name, pages",
        id="memory-key",
    ),
    pytest.param(
        memory('[{ name = "ram", pages = 1 }, { name = "ram", pages = 1 }]'),
        "vm.memory: memories need names of their own, not ['ram', 'ram']",
        id="memory-twice",
    ),
    pytest.param(
        memory('[{ name = "ram", pages = 1, contents = [1, 2] }]'),
        "vm.memory[0].contents: 2 values for 1 page",
        id="too-many-contents",
    ),
    pytest.param("title = 't'", "task: is missing", id="no-task-key"),
    pytest.param("title = 't'\ntask = []", "task: tasks need names", id="no-task"),
    pytest.param("title = 't'\ntask = [3]", "task[0]: 3 is int, not dict", id="task"),
    pytest.param(
        base(rest="[[task]]\nname = 'vmm'\nsteps = []"),
        "task: tasks need names of their own, not ['vmm', 'vmm']",
        id="task-twice",
    ),
    pytest.param(
        base(task="loop = 3"), "task[0].loop: unknown key; there is name", id="task-key"
    ),
    pytest.param(
        "title = 't'\n[[task]]\nname = 'a'", "task[0].steps: is missing", id="no-steps"
    ),
    pytest.param(
        base(steps="3"), "task[0].steps[0]: 3 is no step such as", id="step-number"
    ),
    pytest.param(
        base(steps='" "'), "task[0].steps[0]: ' ' is no step such as", id="step-empty"
    ),
    pytest.param(
        base(steps='"fork", "jump"'),
        "task[0].steps[1]: unknown verb 'jump'; there is age, collapse, dirty_clear",
        id="verb",
    ),
    pytest.param(
        base(steps='"read gfn"'),
        "task[0].steps[0]: 'gfn' is no argument such as gfn=2",
        id="argument-form",
    ),
    pytest.param(
        base(steps='"read gfn=1 gfn=2"'),
        "task[0].steps[0]: gfn is given twice",
        id="argument-twice",
    ),
    pytest.param(
        base(steps='"read gnf=1"'),
        "task[0].steps[0]: read has no argument gnf; there is gfn, gpa",
        id="argument",
    ),
    pytest.param(
        base(steps='"read gfn=x"'),
        "task[0].steps[0]: read gfn: 'x' is no number",
        id="number",
    ),
    pytest.param(
        base(steps='"read gfn=-1"'),
        "task[0].steps[0]: read gfn: -1 is less than 0",
        id="negative",
    ),
    pytest.param(
        base(steps='"read"'),
        "task[0].steps[0]: read needs either gfn= or gpa=",
        id="no-gfn",
    ),
    pytest.param(
        base(steps='"read gfn=1 gpa=0x1000"'),
        "task[0].steps[0]: read needs either gfn= or gpa=",
        id="gfn-and-gpa",
    ),
    pytest.param(
        base(steps='"slot memory=ram"'),
        "task[0].steps[0]: slot needs id=",
        id="argument-missing",
    ),
    pytest.param(
        base(steps='"slot id=0 memory=ram flags=loud"'),
        "task[0].steps[0]: slot flags: 'loud' is no flag; there is log_dirty, readonly",
        id="flag",
    ),
    pytest.param(
        base(steps='"slot id=0 memory=ram flags=0xz"'),
        "task[0].steps[0]: slot flags: '0xz' is no flag",
        id="flag-number",
    ),
    pytest.param(
        base(steps='"mprotect memory=ram prot=x"'),
        "task[0].steps[0]: mprotect prot: 'x' is none of r, rw",
        id="word",
    ),
    pytest.param(
        base(steps='"munmap memory=rom"'),
        "task[0].steps[0]: munmap: no memory 'rom'; there is ram",
        id="memory-unknown",
    ),
    pytest.param(
        base(steps='"mremap memory=ram to=rom"'),
        "task[0].steps[0]: mremap: no memory 'rom'; there is ram",
        id="memory-unknown-to",
    ),
    pytest.param(
        base(steps='"munmap memory=ram page=4"'),
        "task[0].steps[0]: munmap: ram has no page 4; it has 4 pages",
        id="page-beyond",
    ),
    pytest.param(
        base(steps='"munmap memory=ram page=2 pages=3"'),
        "task[0].steps[0]: munmap: ram has no page 4; it has 4 pages",
        id="pages-beyond",
    ),
    pytest.param(
        base(steps='"read gfn=0 vcpu=1"'),
        "task[0].steps[0]: read: no vcpu 1; there is 1",
        id="vcpu",
    ),
    pytest.param(base(top="column = 3"), "column: 3 is int, not list", id="columns"),
    pytest.param(
        base(steps='"munmap memory=ram page=9"'),
        "task[0].steps[0]: munmap: ram has no page 9; it has 4 pages",
        id="page-far-beyond",
    ),
    pytest.param(
        base(steps='"slot id=0 memory=ram gfn=1 gpa=0x1000"'),
        "task[0].steps[0]: slot needs either gfn= or gpa=",
        id="slot-gfn-and-gpa",
    ),
    pytest.param(
        base(steps='"look name=x memory=ram"'),
        "task[0].steps[0]: look needs either gfn= or gpa=",
        id="look-nowhere",
    ),
    pytest.param(
        column('name = "c"\nshow = "entry"\ngfn = "2"'),
        "column[0].gfn: '2' is str, not int",
        id="show-key-kind",
    ),
    pytest.param(
        base(rest="[property.p]\nbad = '\\u0000'"),
        "property.p.bad: '\\\\u0000' is no expression",
        id="property-odd",
    ),
    pytest.param(column('show = "entry"'), "column[0].name: is missing", id="unnamed"),
    pytest.param(column('name = "c"'), "column[0].show: is missing", id="no-show"),
    pytest.param(
        column('name = "c"\nshow = "colour"'),
        "column[0]: unknown show 'colour'; there is callback",
        id="show",
    ),
    pytest.param(
        column('name = "c"\nshow = "entry"\ngnf = 1'),
        "column[0]: entry has no key gnf; there is after",
        id="show-key",
    ),
    pytest.param(
        column('name = "c"\nshow = "count"'),
        "column[0]: count needs event",
        id="show-needs",
    ),
    pytest.param(
        column('name = "c"\nshow = "entry"\nafter = "never"'),
        "column[0].after: no step has mark name=never",
        id="mark",
    ),
    pytest.param(
        column('name = "c"\nshow = "value"\nof = "open(1)"'),
        "column[0].of: 'open(1)': only any() and all() may be called",
        id="show-value",
    ),
    pytest.param(
        column('name = "arch"\nshow = "violations"'),
        "column[0].name: arch is a column of every comparison",
        id="column-taken",
    ),
    pytest.param(
        column('name = "c"\nshow = "tables"\n[[column]]\nname = "c"\nshow = "tables"'),
        "column: columns need names of their own, not ['c', 'c']",
        id="column-twice",
    ),
    pytest.param(expect('arch = "toy"'), "expect[0].values: is missing", id="values"),
    pytest.param(
        expect("values = { d = 1 }"),
        "expect[0].values.d: no such column; there is c",
        id="value-column",
    ),
    pytest.param(
        expect("values = {}\nkernel = 'v6.1'"),
        "expect[0].kernel: unknown key; there is arch, since",
        id="expect-key",
    ),
    pytest.param(
        expect("values = {}\nsince = 'v6.99'"),
        "expect[0].since: unknown release 'v6.99'",
        id="since",
    ),
    pytest.param(
        expect("values = {}\nuntil = 'later'"),
        "expect[0].until: unknown release 'later'",
        id="until",
    ),
    pytest.param(
        expect("values = {}\nwith = [1]"),
        "expect[0].with[0]: 1 is int, not str",
        id="with",
    ),
    pytest.param(
        base(rest="[property.p]\nask = 'always'"),
        "property.p.bad: is missing",
        id="property-bad",
    ),
    pytest.param(
        base(rest="[property.p]\nbad = 'True'\nask = 'never'"),
        "property.p.ask: 'never' is none of always, at-rest",
        id="property-ask",
    ),
    pytest.param(
        base(rest="[property.p]\nbad = '1 +'"),
        "property.p.bad: '1 +' is no expression",
        id="property-syntax",
    ),
    pytest.param(
        base(rest="[property.p]\nbad = 'vm.__class__'"),
        "property.p.bad: 'vm.__class__': attribute __class__ is not allowed",
        id="property-private",
    ),
    pytest.param(
        base(rest="[property.p]\nbad = 'True'\nwhy = 'x'"),
        "property.p.why: unknown key; there is ask, bad",
        id="property-key",
    ),
    pytest.param(
        base(rest="[property]\np = 3"), "property.p: 3 is int, not dict", id="property"
    ),
    pytest.param(
        base(top='schedule = ["x 3"]'),
        "schedule[0]: 'x 3' is no turn such as 'vmm 5'",
        id="turn-task",
    ),
    pytest.param(
        base(top='schedule = ["vmm"]'), "schedule[0]: 'vmm' is no turn", id="turn-form"
    ),
    pytest.param(
        base(top='schedule = ["vmm -1"]'),
        "schedule[0]: 'vmm -1' is no turn",
        id="turn-steps",
    ),
    pytest.param(base(top="schedule = [3]"), "schedule[0]: 3 is no turn", id="turn"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_a_refusal_names_file_and_key(tmp_path, text, message):
    path = tmp_path / "broken.toml"
    path.write_text(text, "utf-8")

    with pytest.raises(ScenarioError, match=re.escape(f"{path}: {message}")) as refused:
        load(path)
    assert "\n" not in str(refused.value)
