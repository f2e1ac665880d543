"""A plugin that does not work: one line, the others work, the status says so."""

import json

import pytest

COMPARE = ("kvmarch", "compare", "change_pte", "-k", "v6.12", "--format", "json")


def break_it(demo, module, old, new):
    path = demo.folder / "kvmarch_demo" / module
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), "utf-8")


@pytest.mark.parametrize(
    ("module", "old", "new", "message"),
    [
        pytest.param(
            "formats.py",
            "from kvmarch import (",
            "import no_such_package\nfrom kvmarch import (",
            "importing kvmarch_demo failed: ModuleNotFoundError: No module named "
            "'no_such_package'",
            id="dependency",
        ),
        pytest.param(
            "formats.py",
            "Field(3, doc=",
            "Field(2, doc=",
            "importing kvmarch_demo failed: FormatError: Page.",
            id="overlap",
        ),
        pytest.param(
            "__init__.py",
            "KVMARCH_API = (1, ",
            "KVMARCH_API = (1, 9",
            "wants API 1.9",
            id="newer",
        ),
        pytest.param(
            "formats.py",
            'name="demo"',
            'name="x86"',
            "hook kvmarch_arch says 'x86', the entry point 'demo'",
            id="taken",
        ),
    ],
)
def test_a_plugin_that_is_refused(written, module, old, new, message):
    demo = written()
    break_it(demo, module, old, new)
    ran = demo.run(*COMPARE)

    (line,) = ran.stderr.splitlines()
    assert line.startswith("kvmarch: plugin demo: ")
    assert message in line
    assert ran.returncode == 2
    assert {row["arch"] for row in json.loads(ran.stdout)["rows"]} >= {"arm64", "x86"}


def test_an_operation_that_fails(written):
    demo = written()
    break_it(demo, "faults.py", 'return "missing"', "return 1 // 0")
    ran = demo.run(*COMPARE)

    table = json.loads(ran.stdout)
    rows = {row["arch"]: row for row in table["rows"]}
    assert rows["demo"]["note"] == (
        "plugin demo: hook kvmarch_translate raised ZeroDivisionError: integer "
        "division or modulo by zero"
    )
    assert rows["x86"]["effect"] is not None
    assert (ran.returncode, ran.stderr) == (2, "")


@pytest.mark.parametrize(
    "words",
    [
        ("check-plugin", "demo"),
        ("compare", "change_pte", "-a", "demo"),
        ("explore", "change_pte_cow", "-a", "demo"),
        ("formats", "demo"),
        ("run", "change_pte", "-a", "demo", "-k", "v6.1"),
        ("plugins",),
        ("scenarios",),
    ],
    ids=lambda words: words[0],
)
def test_a_refusal_is_one_line_in_every_command(written, words):
    demo = written(tier=1)
    break_it(demo, "formats.py", "\nPAGE_SHIFT", "\n1 // 0\nPAGE_SHIFT")
    ran = demo.run("kvmarch", *words)

    said = ran.stdout + ran.stderr
    assert said.count("ZeroDivisionError: integer division or modulo by zero") == 1
    assert "Traceback" not in said
    assert ran.returncode == 2


def test_who_does_not_mean_the_broken_one_is_not_concerned(written):
    demo = written()
    break_it(demo, "formats.py", "LEVELS = 3", "LEVELS = 1 // 0")
    ran = demo.run(*COMPARE, "--arch", "arm64")

    assert ran.returncode == 0, ran.stderr


def test_a_command_that_only_looks_names_the_hook(written):
    demo = written()
    break_it(demo, "formats.py", "        shift = PAGE_SHIFT", "        shift = 1 // 0")
    image = demo.folder / "image"
    image.write_bytes(bytes(4096))
    ran = demo.run("kvmarch", "walk", str(image), "-a", "demo", "--root", "0")

    assert ran.returncode == 2
    assert ran.stderr == (
        "kvmarch: plugin demo: hook kvmarch_walk raised ZeroDivisionError: integer "
        "division or modulo by zero\n"
    )


def test_a_check_names_what_fails(written):
    demo = written()
    break_it(demo, "notifiers.py", "young = False", 'young = "no"')
    ran = demo.run("kvmarch", "check-plugin", "demo", "-k", "v6.12")

    assert ran.returncode == 1, ran.stderr
    assert "demo reaches tier 2" in ran.stdout
    said = " ".join(ran.stdout.split())
    assert "hook kvmarch_age_gfn returned str 'no', not True or False" in said


def test_pytest_says_why_an_architecture_was_refused(written):
    demo = written()
    break_it(demo, "__init__.py", "KVMARCH_API = (1, ", "KVMARCH_API = (1, 9")
    ran = demo.run("pytest", "-q", "tests/test_operations.py")

    assert ran.returncode == 2
    assert "plugin demo: wants API 1.9" in ran.stdout
    assert "Traceback" not in ran.stdout + ran.stderr


def test_a_plugin_that_is_slow_to_import_is_named_and_works(written):
    demo = written()
    break_it(
        demo, "formats.py", "\nPAGE_SHIFT", "\nimport time\ntime.sleep(5.1)\nPAGE_SHIFT"
    )
    ran = demo.run(*COMPARE)

    (line,) = ran.stderr.splitlines()
    assert line.startswith(
        "kvmarch: plugin demo: importing kvmarch_demo of kvmarch-demo took "
    )
    assert "demo" in {row["arch"] for row in json.loads(ran.stdout)["rows"]}
    assert ran.returncode == 0


def test_a_name_that_two_distributions_want(written):
    demo = written()
    other = demo.folder / "kvmarch_other.egg-info"
    other.mkdir()
    other.joinpath("PKG-INFO").write_text(
        "Metadata-Version: 2.1\nName: kvmarch-other\nVersion: 1\n", "utf-8"
    )
    other.joinpath("entry_points.txt").write_text(
        "[kvmarch]\ndemo = kvmarch_demo\n", "utf-8"
    )
    ran = demo.run(*COMPARE)

    (line,) = ran.stderr.splitlines()
    assert "the name is taken by kvmarch-" in line
    assert "demo" in {row["arch"] for row in json.loads(ran.stdout)["rows"]}
    assert ran.returncode == 2
