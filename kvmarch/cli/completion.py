"""Completion in a shell: the command that switches it on, and its answers."""

__all__ = ["VARIABLE", "answer", "completion"]

import contextlib
import io
import os
import sys
from typing import Any

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    split_arg_string,
)

from kvmarch.cli.commands import cli

VARIABLE = "_KVMARCH_COMPLETE"
"""The environment variable with which a shell asks: ``bash_complete`` and such."""

_BASH = """\
%(complete_func)s() {
    local IFS=$'\\n' answer type value

    answer=$(env COMP_WORDS="${COMP_LINE:0:$COMP_POINT}" COMP_WORD="$2" \
%(complete_var)s=bash_complete "$1")
    for answer in $answer; do
        IFS=',' read -r type value <<< "$answer"
        case $type in
            plain) COMPREPLY+=("$value") ;;
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
        esac
    done
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""


class _Joined(ShellComplete):
    """Keeps ``--option=`` in front of a value that is part of the same word."""

    def get_completions(
        self, args: list[str], incomplete: str
    ) -> "list[CompletionItem[str]]":
        """Return what may stand in place of the whole word."""
        items = super().get_completions(args, incomplete)
        option, equals, _ = incomplete.partition("=")
        if equals and option.startswith("-"):
            for item in items:
                item.value = f"{option}={item.value}"
        return items


class _Bash(_Joined, BashComplete):
    """Bash, which takes ``=``, ``:`` and ``@`` for the end of a word.

    It is told the line up to the cursor, and which part of it is replaced.
    """

    source_template = _BASH

    def get_completion_args(self) -> tuple[list[str], str]:
        line = os.environ["COMP_WORDS"]
        words = split_arg_string(line)[1:]
        if not words or line[-1:].isspace():
            words.append("")
        self.kept = len(words[-1].removesuffix(os.environ["COMP_WORD"]))
        return words[:-1], words[-1]

    def format_completion(self, item: "CompletionItem[Any]") -> str:
        value = item.value[self.kept :].replace(" ", "\\ ")
        return f"{item.type},{value}"


class _Zsh(_Joined, ZshComplete):
    """Zsh, which takes a colon for the end of a value that has a description."""

    def format_completion(self, item: "CompletionItem[Any]") -> str:
        # Click escapes the colon, too, but only since 8.2.
        value = item.value.replace(":", r"\:") if item.help else item.value
        return f"{item.type}\n{value}\n{item.help or '_'}"


class _Fish(_Joined, FishComplete):
    """Fish, with values and descriptions that have commas in them."""

    source_template = FishComplete.source_template.replace(
        'string split ","', 'string split --max 1 ","'
    )


_SHELLS = {"bash": _Bash, "zsh": _Zsh, "fish": _Fish}


def answer(asked: str) -> int:
    """Answer a shell that asks what may follow; return the exit status.

    A shell prints whatever it is told into the line that somebody is typing, so an
    error is no answer rather than a message.

    :param asked: value of :data:`VARIABLE`.
    """
    shell, _, what = asked.partition("_")
    if shell not in _SHELLS or what != "complete":
        return 1
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            answers = _SHELLS[shell](cli, {}, "kvmarch", VARIABLE).complete()
        except Exception:  # noqa: BLE001 - see above
            return 1
    sys.stdout.write(f"{answers}\n")
    return 0


@click.command()
@click.argument("shell", type=click.Choice(sorted(_SHELLS)))
def completion(shell: str) -> None:
    """Print what makes a shell complete: eval "$(kvmarch completion bash)".

    Fish takes it from a pipe: kvmarch completion fish | source.
    """
    click.echo(_SHELLS[shell](cli, {}, "kvmarch", VARIABLE).source(), nl=False)
