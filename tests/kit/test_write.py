"""The distribution that new-arch writes passes its own tests, at every tier."""

import json
import tomllib

import pytest
from click.testing import CliRunner

from kvmarch.cli import command_line
from kvmarch.errors import KvmarchError
from kvmarch.hookspecs import API_VERSION
from kvmarch.kit.write import LEVELS, PAGE_SIZES, Geometry, files_of, write_arch

GEOMETRIES = [
    (size, levels)
    for size in PAGE_SIZES
    for levels in LEVELS
    if (size.bit_length() - 1) + levels * (size.bit_length() - 4) <= 64
]


@pytest.mark.parametrize("tier", [1, 2, 3, 4, 5])
def test_what_is_written_passes_its_tests_and_reaches_its_tier(written, tier):
    demo = written(tier=tier)

    tests = demo.run("pytest", "-q", "--kvmarch-kernel=v6.12")
    checked = demo.run("kvmarch", "check-plugin", "demo", "-k", "v6.12")

    assert tests.returncode == 0, tests.stdout
    assert " passed" in tests.stdout
    assert checked.returncode == 0, checked.stdout
    assert f"demo reaches tier {tier}" in checked.stdout


@pytest.mark.parametrize(("page_size", "levels"), GEOMETRIES)
def test_every_geometry_keeps_the_contract(written, page_size, levels):
    demo = written(page_size=page_size, levels=levels)

    ran = demo.run("pytest", "-q", "--kvmarch-kernel=v5.10")

    assert ran.returncode == 0, ran.stdout


@pytest.mark.parametrize("tier", [2, 5])
def test_a_comparison_shows_it_and_marks_what_is_not_reached(written, tier):
    demo = written(tier=tier)
    ran = demo.run(
        *("kvmarch", "compare", "change_pte", "-k", "v6.1", "--format", "json")
    )

    assert ran.returncode == 0, ran.stderr
    table = json.loads(ran.stdout)
    rows = {row["arch"]: row for row in table["rows"]}
    assert {"arm64", "demo", "x86"} <= rows.keys()
    assert (rows["demo"]["effect"] is None) is (tier == 2)
    note = "demo stops at tier 2; kvmarch_set_spte_gfn is of tier 3"
    assert rows["demo"]["note"] == (note if tier == 2 else "")


def test_what_is_written_is_of_this_version_of_the_contract():
    texts = files_of("demo", Geometry(), 5)
    api = ", ".join(map(str, API_VERSION))

    assert f"KVMARCH_API = ({api})" in texts["kvmarch_demo/__init__.py"]
    project = tomllib.loads(texts["pyproject.toml"])
    assert project["project"]["entry-points"]["kvmarch"] == {"demo": "kvmarch_demo"}
    assert all("$" not in text for text in texts.values())


def test_the_command_says_what_it_wrote_and_what_to_do_next(tmp_path):
    folder = tmp_path / "deep" / "one"
    result = CliRunner().invoke(
        command_line(), ["new-arch", "demo", "-o", str(folder), "--tier", "1"]
    )

    assert result.exit_code == 0, result.output
    printed = result.output.split("\n\nNext:")[0].splitlines()
    there = [str(path) for path in folder.rglob("*") if path.is_file()]
    assert sorted(printed) == sorted(there)
    assert f"pip install -e '{folder}[test]'" in result.output


@pytest.mark.parametrize("size", ["65536", "64K", "64k", "64KiB"])
def test_a_page_size_may_be_written_short(tmp_path, size):
    folder = tmp_path / "demo"
    words = ["new-arch", "demo", "--page-size", size, "-o", str(folder)]
    result = CliRunner().invoke(command_line(), words)

    assert result.exit_code == 0, result.output
    assert "PAGE_SHIFT = 16\n" in (folder / "kvmarch_demo/formats.py").read_text()


@pytest.mark.parametrize("tier", [1, 2, 5])
@pytest.mark.parametrize("name", ["demo", "loongarch64"])
def test_a_linter_and_a_type_checker_find_nothing(written, name, tier):
    demo = written(name=name, tier=tier)
    pytest.importorskip("ruff")
    pytest.importorskip("mypy")
    # What the core's own configuration forgives is none of the distribution's.
    demo.folder.joinpath("mypy.ini").write_text(
        "[mypy]\nstrict = True\n[mypy-kvmarch.*]\nfollow_imports = silent\n", "utf-8"
    )

    for words in (
        ("ruff", "check", "."),
        ("ruff", "format", "--check", "."),
        ("mypy", f"kvmarch_{name}"),
    ):
        ran = demo.run(*words)
        assert ran.returncode == 0, ran.stdout + ran.stderr


# -- bad input ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(["Demo"], "'Demo' is no name of an architecture", id="capital"),
        pytest.param(["class"], "'class' is no name", id="keyword"),
        pytest.param(["a-b"], "'a-b' is no name", id="hyphen"),
        pytest.param(["../x"], "'../x' is no name", id="path"),
        pytest.param(["x86"], "the name x86 is taken", id="taken"),
        pytest.param(
            ["demo", "--page-size", "5000"],
            "--page-size 5000: there is 4K, 16K, 64K",
            id="page-size",
        ),
        pytest.param(
            ["demo", "--page-size", "64X"],
            "'64X': wanted bytes, such as 65536 or 64K",
            id="no-size",
        ),
        pytest.param(
            ["demo", "--levels", "9"], "--levels 9: there is 2 to 5", id="levels"
        ),
        pytest.param(
            ["demo", "--page-size", "65536", "--levels", "5"],
            "would translate 81 bits",
            id="too-wide",
        ),
        pytest.param(["demo", "--tier", "6"], "6 is not in the range", id="tier"),
    ],
)
def test_bad_input_is_one_line(tmp_path, words, message):
    folder = tmp_path / "out"
    result = CliRunner().invoke(command_line(), ["new-arch", *words, "-o", str(folder)])

    assert result.exit_code == 2
    assert message in result.output
    assert not folder.exists()


def test_nothing_is_overwritten(tmp_path):
    tmp_path.joinpath("mine").write_text("text", "utf-8")

    with pytest.raises(KvmarchError, match="is there already"):
        write_arch("demo", Geometry(), 5, tmp_path, ())

    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_empty_folder_is_filled(tmp_path):
    write_arch("demo", Geometry(), 1, tmp_path, ())

    assert (tmp_path / "pyproject.toml").exists()


def test_a_folder_that_cannot_be_made(tmp_path):
    tmp_path.joinpath("file").write_text("", "utf-8")

    with pytest.raises(KvmarchError, match=r"Not a directory|File exists"):
        write_arch("demo", Geometry(), 1, tmp_path / "file" / "x", ())
