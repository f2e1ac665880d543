"""Renderers: text of 100 columns, Markdown, JSON and CSV."""

import csv
import io
import json

import pytest

from kvmarch.report.render import FORMATS, WIDTH, render
from kvmarch.report.table import Column, Table


@pytest.fixture
def table():
    return Table(
        "A title",
        (Column("name"), Column("number_of_it"), Column("more", detail=True)),
        [
            {"name": "one", "number_of_it": 1, "more": True},
            {"name": "two", "number_of_it": None, "more": "a, b"},
            {"name": "three", "number_of_it": 3},
        ],
        ["a note", "another"],
    )


TEXT = """\
A title

name   number  more
       of it
-----  ------  ----
one    1       yes
two    -       a, b
three  3       -

a note
another
"""


def test_text(table):
    assert render(table, "text") == TEXT


def test_markdown(table):
    lines = render(table, "markdown").split("\n")

    assert lines[0] == "A title"
    assert [cell.strip() for cell in lines[2].strip("|").split("|")] == [
        "name",
        "number_of_it",
        "more",
    ]
    assert lines[3].startswith("|--")
    assert lines[-3:] == ["a note", "another", ""]


def test_json(table):
    read = json.loads(render(table, "json"))

    assert read["title"] == "A title"
    assert read["columns"] == ["name", "number_of_it", "more"]
    assert read["rows"] == [
        {"name": "one", "number_of_it": 1, "more": True},
        {"name": "two", "number_of_it": None, "more": "a, b"},
        {"name": "three", "number_of_it": 3, "more": None},
    ]
    assert read["notes"] == ["a note", "another"]


def test_csv(table):
    rows = list(csv.reader(io.StringIO(render(table, "csv"))))

    assert rows == [
        ["name", "number_of_it", "more"],
        ["one", "1", "yes"],
        ["two", "-", "a, b"],
        ["three", "3", "-"],
    ]


@pytest.mark.parametrize("style", sorted(FORMATS))
def test_an_empty_table(style):
    text = render(Table("Nothing", (Column("a"),), notes=["no rows"]), style)

    assert text.endswith("\n")
    assert ("Nothing" in text) == (style != "csv")


def test_a_table_without_a_title(table):
    table.title = ""

    assert render(table, "text").startswith("name")


def test_rows_that_differ_in_one_column_become_one():
    table = Table(
        "",
        (Column("arch"), Column("kernel"), Column("value")),
        [
            {"arch": "a", "kernel": f"v{n}", "value": value}
            for n, value in enumerate(["x", "x", "x", "y", "x"])
        ],
        merge="kernel",
    )

    text = [line.split() for line in render(table, "text").strip().split("\n")[2:]]
    whole = json.loads(render(table, "json"))["rows"]

    assert text == [["a", "v0..v2", "x"], ["a", "v3", "y"], ["a", "v4", "x"]]
    assert len(whole) == 5


def wide(columns, width, **options):
    names = [f"c{n}" for n in range(columns)]
    return Table(
        "",
        tuple(Column(n, detail=n in options.get("details", ())) for n in names),
        [dict.fromkeys(names, "x" * width)],
        keys=options.get("keys", 1),
    )


def test_details_are_left_out_first():
    text = render(wide(6, 18, details=("c1", "c4")), "text")

    assert "left out to fit: c4 (see --format json)" in text
    assert max(map(len, text.split("\n"))) <= WIDTH
    assert "c1" in text.split("\n")[0]


def test_a_detail_without_a_value_is_left_out_silently(table):
    for row in table.rows:
        row["more"] = ""

    text = render(table, "text")

    assert "more" not in text
    assert "left out" not in text


def test_a_table_that_stays_too_wide_is_broken_into_blocks():
    text = render(wide(9, 18, keys=2), "text")

    heads = [line.split() for line in text.split("\n") if line.startswith("c0")]
    assert heads == [
        ["c0", "c1", "c2", "c3", "c4"],
        ["c0", "c1", "c5", "c6", "c7"],
        ["c0", "c1", "c8"],
    ]
    assert max(map(len, text.split("\n"))) <= WIDTH


def test_markdown_and_csv_keep_every_column():
    table = wide(9, 40)

    assert "c8" in render(table, "markdown").split("\n")[0]
    assert render(table, "csv").startswith("c0,c1,c2,c3,c4,c5,c6,c7,c8\n")


def test_numbers_are_not_reformatted():
    table = Table("", (Column("v"),), [{"v": "0x10"}, {"v": "1e5"}, {"v": "007"}])

    assert render(table, "text").split()[2:] == ["0x10", "1e5", "007"]


def test_a_column_that_is_too_wide_is_broken():
    sentence = "a word and another " * 10
    table = Table("", (Column("key"), Column("text")), [{"key": "k", "text": sentence}])

    lines = render(table, "text").split("\n")

    assert max(map(len, lines)) <= WIDTH
    assert " ".join(" ".join(lines[2:]).split()) == f"k {sentence.strip()}"


def test_titles_and_notes_are_broken_too():
    sentence = "a word and another " * 10
    table = Table(sentence, (Column("key"),), [{"key": "k"}], [sentence])

    assert max(map(len, render(table, "text").split("\n"))) <= WIDTH
    assert sentence in render(table, "markdown")
    assert json.loads(render(table, "json"))["notes"] == [sentence]


def test_lines_of_a_cell_stay_lines():
    cell = "first\n    -> second " + "word " * 30
    table = Table("", (Column("key"), Column("text")), [{"key": "k", "text": cell}])

    lines = render(table, "text").split("\n")

    assert lines[2].split() == ["k", "first"]
    assert lines[3].strip().startswith("-> second word")
    assert max(map(len, lines)) <= WIDTH
