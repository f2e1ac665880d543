"""Whose fault it is when a plugin's operation fails: the hook, in one line.

Operations are linked bare, so that nothing stands between the core and them. Only when
a run has failed is it run once more, with every operation's answer checked; that
names a hook whose wrong answer the core stumbled over later.
"""

__all__ = ["blaming", "checked", "told"]

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import CodeType
from typing import Any

from kvmarch.arch import EntryKind
from kvmarch.changes import Choice
from kvmarch.errors import EntryError, FormatError, KvmarchError, PluginError
from kvmarch.format.walk import WalkLayout
from kvmarch.machine.steps import BLOCKED, Op
from kvmarch.machine.tlb import Flush, Translation
from kvmarch.machine.world import Part
from kvmarch.plugins import Loaded


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _or_none(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or test(value)


def _is(kind: type | tuple[type, ...]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kind)


_FLUSH = (_or_none(_is(Flush)), "a Flush or None")
_BOOL = (_is(bool), "True or False")
_NOTHING = (lambda value: value is None, "None")

RETURNS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "formats": (
        lambda rows: (
            isinstance(rows, list | tuple)
            and all(isinstance(row, EntryKind) for row in rows)
        ),
        "a list or tuple of EntryKind rows",
    ),
    "decode": (
        lambda value: (
            _is_pair(value)
            and isinstance(value[0], str)
            and isinstance(value[1], Mapping)
        ),
        "a pair of name and fields",
    ),
    "entry_pfn": (_or_none(_is_int), "an int or None"),
    "entry_repoint": (_is_int, "an int"),
    "walk": (_or_none(_is(WalkLayout)), "a WalkLayout or None"),
    "vm_create": (_is(Part), "a Part"),
    "vcpu_create": (_or_none(_is(Part)), "a Part or None"),
    "vcpu_load": (_or_none(_is(bool)), "True, False or None"),
    "tlb_tag": (_is_hashable, "an int, or whatever can be hashed"),
    "translate": (_is((Translation, str)), "a Translation or a str"),
    "page_fault": (
        lambda value: value in ("guest", "mmio", "exception", "error"),
        "'guest', 'mmio', 'exception' or 'error'",
    ),
    "unmap_gfn_range": _FLUSH,
    "entry": (
        lambda value: _is_pair(value) and all(map(_is_int, value)),
        "a pair of ints",
    ),
    "leaf_table": (
        _or_none(lambda value: _is_pair(value) and all(map(_is_int, value))),
        "a pair of ints or None",
    ),
    "set_spte_gfn": _FLUSH,
    "age_gfn": _BOOL,
    "test_age_gfn": _BOOL,
    "prepare_memory_region": (_is_int, "an int"),
    "commit_memory_region": _NOTHING,
    "flush_shadow_memslot": _NOTHING,
    "dirty_log_masked": _FLUSH,
    "sync_dirty_log": (_or_none(_is_int), "an int or None"),
    "flush_shadow_all": _NOTHING,
}
"""What an operation may return: a test, and the answer in words."""


_OF_VALUES = (EntryError, FormatError)
"""What a plugin's own code raises when it packs what no entry can hold."""


@contextmanager
def blaming(arch: Loaded, again: Callable[[Loaded], Any]) -> Iterator[None]:
    """Turn an error that an architecture's code made into one line.

    :param again: does once more what is done inside, with the architecture given.
    :raises PluginError: with the hook and the cause. What is not the plugin's fault
        is raised as it was.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, KvmarchError) and not isinstance(error, _OF_VALUES):
            raise
        try:
            again(checked(arch))
        except PluginError as better:
            raise better from error
        except Exception:  # noqa: BLE001, S110 - the first error is the one to tell
            pass
        found = told([arch], error)
        if found is None:
            raise
        raise found from error


def told(archs: Iterable[Loaded], error: BaseException) -> PluginError | None:
    """Return an error as one line with the hook in which it was raised.

    :returns: None if it was raised in no hook of these architectures.
    """
    for arch in archs:
        name = _hook_of(arch, error)
        if name is not None:
            return _raised(arch.name, name, error)
    return None


def _raised(arch: str, name: str, error: BaseException) -> PluginError:
    text = " ".join(str(error).split())
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return PluginError(f"plugin {arch}: hook kvmarch_{name} raised {said}")


def _hook_of(arch: Loaded, error: BaseException) -> str | None:
    """Return the innermost operation of the architecture in a traceback."""
    names = {
        code: name
        for name, value in _bodies(arch)
        if (code := _code(value)) is not None
    }
    found = None
    trace = error.__traceback__
    while trace is not None:
        found = names.get(trace.tb_frame.f_code, found)
        trace = trace.tb_next
    return found


def _bodies(arch: Loaded) -> Iterator[tuple[str, Any]]:
    yield from arch.operations.items()
    for choice in arch.choices:
        for variant in choice.variants:
            yield choice.name, variant.value


def _code(value: Any) -> CodeType | None:
    function = inspect.unwrap(value.fn if isinstance(value, Op) else value)
    code = getattr(function, "__code__", None)
    return code if isinstance(code, CodeType) else None


def checked(arch: Loaded) -> Loaded:
    """Return an architecture whose operations name themselves when they fail."""
    operations = {
        name: _checked(arch.name, name, value)
        for name, value in arch.operations.items()
    }
    choices = []
    for choice in arch.choices:
        copy = Choice(choice.name, choice.doc)
        for variant in choice.variants:
            copy.add(_checked(arch.name, choice.name, variant.value), *variant.needs)
        choices.append(copy)
    return replace(arch, operations=operations, choices=tuple(choices))


def _checked(arch: str, name: str, value: Any) -> Any:
    if isinstance(value, Op):
        body = _checked(arch, name, value.fn)
        return Op(body, name=value.name, sleeps=value.sleeps)
    if not inspect.isfunction(value):
        return value
    fits, wanted = RETURNS.get(name, (lambda _answer: True, ""))

    def check(answer: Any) -> Any:
        if answer is not BLOCKED and not fits(answer):
            raise PluginError(
                f"plugin {arch}: hook kvmarch_{name} returned "
                f"{type(answer).__name__} {_short(answer)}, not {wanted}"
            )
        return answer

    if inspect.iscoroutinefunction(value):

        @functools.wraps(value)
        async def path(*args: Any) -> Any:
            try:
                answer = await value(*args)
            except KvmarchError:
                raise
            except Exception as error:
                raise _raised(arch, name, error) from error
            return check(answer)

        return path

    @functools.wraps(value)
    def function(*args: Any) -> Any:
        try:
            answer = value(*args)
        except KvmarchError:
            raise
        except Exception as error:
            raise _raised(arch, name, error) from error
        return check(answer)

    return function


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 40 else text[:37] + "..."
