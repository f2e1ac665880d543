"""The record beside scenarios: read and written whole, by several at once."""

import json
import multiprocessing

import pytest

from kvmarch.errors import KvmarchError
from kvmarch.testing.own import Found

ROW = {"property": "freed-page", "shortest": 3}


def test_nothing_was_ever_recorded(tmp_path):
    assert Found(tmp_path).read() is None


def test_what_is_recorded_is_read_again(tmp_path):
    found = Found(tmp_path)

    assert found.write({"b": ROW, "a": ROW, "nothing-lost": {}})
    assert found.read() == {"a": ROW, "b": ROW}
    assert list(json.loads(found.path.read_text("utf-8"))) == ["a", "b"]
    assert found.path.read_text("utf-8").endswith("}\n")


def test_what_is_the_same_is_not_written(tmp_path):
    found = Found(tmp_path)
    found.write({"a": ROW})
    before = found.path.stat().st_mtime_ns, found.path.stat().st_ino

    assert not found.write({"a": ROW})
    assert (found.path.stat().st_mtime_ns, found.path.stat().st_ino) == before


def test_what_is_not_found_any_more_is_taken_out(tmp_path):
    found = Found(tmp_path)
    found.write({"a": ROW, "b": ROW})

    assert found.write({"a": {}})
    assert found.read() == {"b": ROW}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param('{"a": {', "torn or no JSON", id="torn"),
        pytest.param("", "torn or no JSON", id="empty"),
        pytest.param("[]", "no table of what was found", id="list"),
        pytest.param('{"a": 3}', "no table of what was found", id="row"),
    ],
)
def test_a_record_that_cannot_be_used(tmp_path, text, message):
    found = Found(tmp_path)
    found.path.write_text(text, "utf-8")

    with pytest.raises(KvmarchError, match=message):
        found.read()
    assert found.path.read_text("utf-8") == text
    assert found.write({"a": ROW})
    assert found.read() == {"a": ROW}


def write_one(folder, name):
    Found(folder).write({name: ROW})


def test_several_processes_write_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    names = [f"s{number}" for number in range(8)]
    tasks = [context.Process(target=write_one, args=(tmp_path, n)) for n in names]
    for task in tasks:
        task.start()
    for task in tasks:
        task.join(30)

    assert Found(tmp_path).read() == dict.fromkeys(names, ROW)
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]
