"""Completion: what is offered where, in shells that are here, and what goes wrong."""

import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from kvmarch.cli import command_line
from kvmarch.errors import KvmarchError

cli = command_line()
BIN = str(Path(sys.executable).parent)


def items(*words):
    """What is offered for the last word; an empty one is a new word."""
    complete = ShellComplete(cli, {}, "kvmarch", "_KVMARCH_COMPLETE")
    return complete.get_completions(list(words[:-1]), words[-1])


def offered(*words):
    return [item.value for item in items(*words)]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("compare", "change_pte_d"), ["change_pte_delete", "change_pte_dontneed"]),
        (("lab", "run", "tou"), ["tour"]),
        (("sweep", "tour", "gpc-h"), ["gpc-h1"]),
        (("formats", "x8"), ["x86"]),
        (("check-plugin", "mi"), ["mips"]),
        (("compare", "tour", "-a", "arm"), ["arm64"]),
        (("compare", "tour", "-a", "x86,arm64,m"), ["x86,arm64,mips"]),
        (("compare", "tour", "-a", "x86,x"), []),
        (("run", "tour", "--kernel", "v3.1"), [f"v3.1{n}" for n in (9, 8, 7, 6)]),
        (("sweep", "tour", "-k", "v5.4..v3.16"), ["v5.4..v3.16"]),
        (("kernels", "--diff", "v6.1", "v7.2"), ["v7.2"]),
        (("run", "tour", "--with", "bracketed"), ["bracketed-set-pte"]),
        (("sweep", "tour", "--toggle", "bracketed"), ["bracketed-set-pte"]),
        (("run", "tour", "--set", "mmu=td"), ["mmu=tdp"]),
        (("run", "tour", "-a", "arm64", "--set", "mmu="), ["mmu=stage2"]),
        (("posts", "3"), ["3"]),
        (("bugs", "gpc-h"), ["gpc-h1"]),
        (("compare", "tour", "--format", "m"), ["markdown"]),
        (("explain", "gpc-h1", "--property", "lo"), ["lost-dirty", "locks"]),
        (("explain", "clear-log-tail", "--property", "nev"), ["never-clean"]),
        (("conform", "ppc64el-6.1"), ["ppc64el-6.1"]),
        (("new-arch", "x8"), []),
    ],
)
def test_values_are_offered(words, wanted):
    found = offered(*words)

    assert found[: len(wanted)] == wanted
    assert len(found) == len(wanted) or words[0] == "conform"


def test_an_offer_says_what_it_is():
    told = {item.value: item.help for item in items("compare", "")}
    assert told["gpc-h1"].startswith("A gfn_to_pfn_cache of a host address")
    assert [item.help for item in items("posts", "2")] == [
        "memslots: is one change of the generation enough?"
    ]


def test_the_recorded_schedule_of_the_scenario_is_offered():
    (schedule,) = offered("explore", "gpc-h1", "--replay", "")

    assert schedule.startswith("gpc-h1@")
    assert len(offered("report", "--schedule", "")) > 50


def test_files_are_offered_beside_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("tourist.toml", "tour.txt", "sub/mine.toml"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("")

    assert offered("run", "tou") == ["tour", "tourist.toml"]
    assert offered("run", "./t") == ["./tourist.toml"]
    assert offered("run", "sub/") == ["sub/mine.toml"]
    assert offered("run", f"{tmp_path}/tou") == [f"{tmp_path}/tourist.toml"]
    # What is neither is left to the shell, which knows folders and ~.
    (item,) = items("run", "su")
    assert (item.type, item.value) == ("file", "su")


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (("walk", ""), "file"),
        (("run", "tour", "--output", ""), "file"),
        (("lab", "fuzz", "--save", ""), "dir"),
    ],
)
def test_paths_are_left_to_the_shell(words, kind):
    assert [item.type for item in items(*words)] == [kind]


def test_kernels_in_the_cache_are_offered(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for place in ("arm64/6.1.0-1-arm64", "amd64/6.1.0-1-amd64", "mars/6.1"):
        (tmp_path / "kvmarch" / "kernels" / place).mkdir(parents=True)

    assert offered("lab", "run", "tour", "-k", "6") == [
        "6.1.0-1-amd64",
        "6.1.0-1-arm64",
    ]
    assert offered("lab", "run", "-a", "arm64", "-k", "") == ["6.1.0-1-arm64"]


def test_a_loader_that_fails_offers_nothing_and_prints_nothing(monkeypatch, capfd):
    def load(**_how):
        sys.stdout.write("noise")
        raise KvmarchError("no")

    monkeypatch.setattr("kvmarch.plugins.load", load)

    assert offered("run", "tour", "--with", "") == []
    assert offered("compare", "-a", "mi") == ["mips"]
    assert capfd.readouterr() == ("", "")


def test_a_broken_scenario_file_takes_its_properties_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "torn.toml").write_bytes(b"\xff\x00 = [")

    assert "ends" in offered("explain", "./torn.toml", "--property", "")
    assert "ends" in offered("explain", "nowhere", "--property", "")


def ask(shell, line, **env):
    word = line.rpartition(" ")[2]
    given = {
        "COMP_WORDS": line,
        "COMP_WORD": word,
        "COMP_CWORD": word if shell == "fish" else str(line.count(" ")),
        "_KVMARCH_COMPLETE": f"{shell}_complete",
    }
    return subprocess.run(
        [sys.executable, "-m", "kvmarch"],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | given | env,
    )


def test_a_broken_plugin_does_not_break_completion(tmp_path):
    info = tmp_path / "broken-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[kvmarch]\nbroken = broken\n")
    (tmp_path / "broken.py").write_text("print('noise')\nraise ValueError('no')\n")

    done = ask("bash", "kvmarch run tou", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "plain,tour\n", "")
    done = ask("bash", "kvmarch compare -a br", PYTHONPATH=str(tmp_path))
    assert done.stdout == "plain,broken\n"


@pytest.mark.parametrize(
    ("shell", "env"),
    [
        ("bash", {"COMP_WORDS": "", "COMP_WORD": ""}),
        ("zsh", {"COMP_CWORD": "x"}),
        ("zsh", {"COMP_CWORD": "99"}),
        ("bash", {"COMP_WORDS": "kvmarch run 'a", "COMP_WORD": "a"}),
        ("csh", {}),
        ("", {}),
    ],
)
def test_a_question_that_makes_no_sense_gets_no_traceback(shell, env):
    assert ask(shell, "kvmarch run t", **env).stderr == ""


@pytest.mark.parametrize(
    ("line", "never"),
    [
        ("kvmarch compare -a x", {"kvmarch_x86", "kvmarch_arm64"}),
        ("kvmarch compare -k v7", {"kvmarch_x86", "kvmarch_arm64"}),
        ("kvmarch explore gpc-h1 --replay ", {"kvmarch.explore.search"}),
    ],
)
def test_what_is_not_needed_is_not_imported(line, never):
    code = (
        "import atexit, sys\n"
        "from kvmarch.cli import main\n"
        "def tell():\n"
        "    print(*sorted(sys.modules), file=sys.stderr)\n"
        "atexit.register(tell)\n"
        "main()\n"
    )
    given = {
        "COMP_WORDS": line,
        "COMP_WORD": "",
        "_KVMARCH_COMPLETE": "bash_complete",
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | given,
    )

    assert done.stdout.startswith("plain,")
    modules = set(done.stderr.split())
    assert "kvmarch.cli.values" in modules
    assert not modules & (never | {"numpy"})


SHELLS = {
    "bash": ("bash --norc --noprofile -i", ""),
    "zsh": ("zsh -f -i", "autoload -U compinit; compinit -u -D; "),
}
SHOW = """show() { printf '<%s>' shown; printf '%s' "$1"; printf '<%s>' /shown; }; """
LIMIT = 120
"""Seconds after which a shell that says nothing is taken for hung."""


class Terminal:
    """A shell on a terminal, into which somebody types."""

    def __init__(self, shell, folder):
        command, first = SHELLS[shell]
        env = os.environ | {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "TERM": "dumb",
            "HOME": str(folder),
            "LC_ALL": "C.UTF-8",
        }
        # A process of its own has the terminal's other end: a test must not fork.
        spawn = "import pty, sys; pty.spawn(sys.argv[1:])"
        self.process = subprocess.Popen(
            [sys.executable, "-c", spawn, *command.split()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=folder,
            env=env,
            bufsize=0,
        )
        source = f'eval "$(kvmarch completion {shell})"; '
        self.type(f"{first}{SHOW}{source}printf '<%s>' ready\r", "<ready>")

    def type(self, text, mark):
        """Type, and return what is printed up to a mark."""
        self.process.stdin.write(text.encode())
        printed, end = b"", time.monotonic() + LIMIT
        while mark.encode() not in printed:
            left = end - time.monotonic()
            assert select.select([self.process.stdout], [], [], left)[0], printed
            more = self.process.stdout.read(65536)
            assert more, printed
            printed += more
        return printed.decode(errors="replace").partition(mark)[0]

    def completed(self, line):
        """Return a line after the Tab key, by having the shell print it."""
        line_end, line_start = "\x05", "\x01"
        keys = f'{line}\t{line_end}"{line_start}show "{line_end}\r'
        return self.type(keys, "</shown>").rpartition("<shown>")[2]

    def close(self):
        # The shell loses its terminal and goes.
        self.process.kill()
        self.process.communicate()


@pytest.fixture(params=SHELLS)
def terminal(request, tmp_path):
    if shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not here")
    terminal = Terminal(request.param, tmp_path)
    yield terminal
    terminal.close()


def test_shells_complete(terminal, tmp_path):
    (tmp_path / "mine.toml").write_text("")
    for typed, wanted in {
        "kvmarch expla": "kvmarch explain",
        "kvmarch compare change_pte_do": "kvmarch compare change_pte_dontneed",
        "kvmarch run ./mi": "kvmarch run ./mine.toml",
        "kvmarch compare tour -a arm64,x": "kvmarch compare tour -a arm64,x86",
        # Bash takes = : and @ for the end of a word, zsh does not.
        "kvmarch compare tour --kernel=v7.2": "kvmarch compare tour --kernel=v7.2",
        "kvmarch compare tour --set mmu=td": "kvmarch compare tour --set mmu=tdp",
        "kvmarch compare tour --set=mmu=td": "kvmarch compare tour --set=mmu=tdp",
        "kvmarch bugs --che": "kvmarch bugs --check",
        "true | A=1 kvmarch scen": "true | A=1 kvmarch scenarios",
        "kvmarch formats x86 0x1 -o mine.t": "kvmarch formats x86 0x1 -o mine.toml",
        "kvmarch zzz": "kvmarch zzz",
    }.items():
        assert terminal.completed(typed).rstrip() == wanted
    schedule = terminal.completed("kvmarch explore gpc-h1 --replay gpc-h1@x86-v")
    assert schedule.rstrip().count(":") == 1


def test_fish_completes():
    if shutil.which("fish") is None:
        pytest.skip("fish is not here")

    def completed(line):
        done = subprocess.run(
            [
                "fish",
                "--no-config",
                "-c",
                "kvmarch completion fish | source; complete -C $argv[1]",
                line,
            ],
            check=True,
            capture_output=True,
            text=True,
            env=os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"},
        )
        assert not done.stderr
        return [tuple(row.split("\t")) for row in done.stdout.splitlines()]

    assert completed("kvmarch compare tour -a arm64,x") == [("arm64,x86", "kvmarch")]
    # Click's own script cuts this one off at the comma.
    assert ("3", "gfn_to_pfn_cache: who retries, who waits, who ends?") in completed(
        "kvmarch posts "
    )
    assert completed("kvmarch run tour --set=mmu=td") == [("--set=mmu=tdp", "x86")]
