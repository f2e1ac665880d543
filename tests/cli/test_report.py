import re

import pytest

from kvmarch.plugins import Plugins, Refused


def test_a_page_is_written_and_summed_up(kvmarch, own, tmp_path):
    result = kvmarch("report", own(), "-k", "v6.1")

    assert result.exit_code == 0
    summary = r"report\.html: 1 scenarios, 1 schedules, \d\.\d MB, \d+ s\n"
    assert re.fullmatch(summary, result.output)
    text = (tmp_path / "report.html").read_text("utf-8")
    assert text.startswith("<!doctype html>")
    assert text.endswith("</html>\n")


def test_the_page_says_which_command_makes_it_again(kvmarch, own, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    text = own(), "--kernel", "v6.1,v6.9", "--without", "bracketed-set-pte", "-o", "-"

    one = kvmarch("report", *text, "--jobs", "1")
    two = kvmarch("report", *text)

    command = f"kvmarch report {own()} --kernel v6.1,v6.9 --without bracketed-set-pte"
    assert f"<code>{command}</code>." in one.output
    assert '<time datetime="1970-01-02">' in one.output
    assert "<title>own: a scenario (kvmarch)</title>" in one.output
    assert one.output == two.output


@pytest.mark.parametrize("epoch", ["soon", "9" * 30])
def test_a_wrong_day_is_said_before_the_work(kvmarch, own, monkeypatch, epoch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
    monkeypatch.setattr("kvmarch.page.collect.collect", None)

    result = kvmarch("report", own())

    assert result.exit_code == 2
    assert result.stderr == (
        f"kvmarch: SOURCE_DATE_EPOCH={epoch}: wanted a number of seconds\n"
    )


def test_a_dash_means_standard_output(kvmarch, own, tmp_path):
    result = kvmarch("report", own(), "-k", "v6.1", "-o", "-")

    assert result.output.startswith("<!doctype html>")
    assert not (tmp_path / "report.html").exists()


def test_a_failed_expectation_is_the_exit_status(kvmarch, own, tmp_path):
    wrong = own('callback = "present"', 'callback = "absent"')

    result = kvmarch("report", wrong, "-k", "v6.1")

    assert result.exit_code == 1
    assert "callback is 'present', expected 'absent'" in result.stderr
    assert (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nothing",), "unknown scenario 'nothing'"),
        (("aging", "-k", "v99.1"), "unknown release 'v99.1'"),
        (("aging", "-a", "vax"), "unknown architecture 'vax'"),
        (
            ("aging", "-k", "v6.1", "-o", "no/where.html"),
            "no/where.html: there is no directory no",
        ),
        (("aging", "-k", "v6.1", "-o", "."), ".: is a directory"),
        (("aging", "--schedule", "ksm_cow@toy-v6.1:a1"), "there is aging"),
        (("aging", "-k", "v6.1", "--schedule", "aging@toy-v6.1"), "is of 'aging@"),
        (("aging", "-k", "v6.1", "--schedule", "aging@toy-v6.1:x"), "no turns such"),
        (
            ("aging", "-k", "v6.1", "--schedule", "aging@toy-v6.1:a99999"),
            "is done after",
        ),
    ],
)
def test_wrong_input_is_one_line(kvmarch, arguments, said, tmp_path):
    result = kvmarch("report", *arguments)

    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_refused_plugin_is_named_and_the_page_is_written(loaded, kvmarch, own, toy):
    loaded(Plugins([toy], [Refused("vax", "kvmarch-vax", "plugin vax: is no plugin")]))

    result = kvmarch("report", own(), "-k", "v6.1")

    assert result.exit_code == 2
    assert result.stderr == "kvmarch: plugin vax: is no plugin\n"
    assert result.stdout.startswith("report.html: 1 scenarios")


def test_states_bound_each_search(kvmarch, tmp_path):
    result = kvmarch("report", "change_pte_cow", "-k", "v6.1", "--states", "5")

    assert result.exit_code == 3
    assert "cut at" in result.stderr
    assert "unknown" in (tmp_path / "report.html").read_text("utf-8")
