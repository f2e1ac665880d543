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


def _locals(instruction: dis.Instruction) -> tuple[str, ...]:
    """Return the locals that an instruction reads or stores."""
    name = instruction.opname
    if name != "STORE_FAST" and not any(read in name for read in _READS):
        return ()
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
    # Sets of locals as bits: this runs for every function that a task goes through.
    bit = {
        name: 1 << number
        for number, name in enumerate({n for ins in instructions for n in _locals(ins)})
    }
    reads, keeps = [], []
    for ins in instructions:
        mine = sum(bit[name] for name in _locals(ins))
        stores = ins.opname == "STORE_FAST"
        reads.append(0 if stores else mine)
        keeps.append(~mine if stores else -1)
    live = [0] * len(instructions)
    changed = True
    while changed:
        changed = False
        for index in range(len(instructions) - 1, -1, -1):
            out = 0
            for number in following[index]:
                out |= live[number]
            out = out & keeps[index] | reads[index]
            if out != live[index]:
                live[index] = out
                changed = True
    return {
        ins.offset: shared | {name for name, mask in bit.items() if bits & mask}
        for ins, bits in zip(instructions, live, strict=True)
    }


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
