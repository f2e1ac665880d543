"""Which locals of a suspended frame are still read: the rest is no state.

A path that waits at its last step keeps the value of every local it ever set. Two
paths that differ only in those have the same future.
"""

__all__ = ["live_names"]

import dis
from functools import cache
from types import CodeType
from typing import Any

_READS = ("LOAD_FAST", "LOAD_DEREF", "LOAD_CLOSURE", "LOAD_CLASSDEREF", "DELETE_FAST")
"""Parts of an instruction's name that say it reads a local."""
_ENDS = frozenset({"RETURN_VALUE", "RETURN_CONST", "RAISE_VARARGS", "RERAISE"})
_ALWAYS = frozenset({"JUMP_FORWARD", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT"})


def _names(instruction: dis.Instruction) -> tuple[str, ...]:
    value = instruction.argval
    return value if isinstance(value, tuple) else (value,)


@cache
def _liveness(code: CodeType) -> dict[int, frozenset[str]]:
    """Return, by offset, the locals that are live before the instruction there."""
    instructions = list(dis.get_instructions(code))
    at = {ins.offset: index for index, ins in enumerate(instructions)}
    # A closure may read its cells at any time, through another frame.
    shared = frozenset(code.co_cellvars)
    following: list[list[int]] = []
    for index, ins in enumerate(instructions):
        after = []
        if ins.opname not in _ENDS and ins.opname not in _ALWAYS:
            after.append(index + 1)
        if ins.opcode in dis.hasjrel or ins.opcode in dis.hasjabs:
            after.append(at[ins.argval])
        following.append([n for n in after if n < len(instructions)])
    # An exception may leave from anywhere in a guarded range for its handler.
    table: Any = dis.Bytecode(code)
    for entry in table.exception_entries:
        handler = at[entry.target]
        for index, ins in enumerate(instructions):
            if entry.start <= ins.offset < entry.end:
                following[index].append(handler)
    live: list[frozenset[str]] = [frozenset()] * len(instructions)
    changed = True
    while changed:
        changed = False
        for index in range(len(instructions) - 1, -1, -1):
            ins = instructions[index]
            out = frozenset().union(*(live[n] for n in following[index]))
            name = ins.opname
            if name == "STORE_FAST":
                out = out - set(_names(ins))
            elif any(read in name for read in _READS):
                out = out | set(_names(ins))
            if out != live[index]:
                live[index] = out
                changed = True
    return {ins.offset: live[i] | shared for i, ins in enumerate(instructions)}


@cache
def live_names(code: CodeType, at: int) -> frozenset[str]:
    """Return the locals that may be read when a frame goes on.

    :param at: offset of the instruction at which it is suspended (``f_lasti``).
    """
    table = _liveness(code)
    later = [offset for offset in table if offset > at]
    if not later:
        return frozenset()
    # Suspended at YIELD_VALUE or SEND: what comes next, or the loop around it.
    return table[min(later)] | table.get(at, frozenset())
