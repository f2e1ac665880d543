"""Find, load, check and link architectures."""

__all__ = ["Loaded", "Plugins", "Refused", "check", "link", "load"]

import importlib.metadata
import inspect
import re
import sys
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pluggy

from kvmarch import hookspecs, toolspecs
from kvmarch.arch import ArchInfo, ArchVerb, Deviation, LabMachine, Option
from kvmarch.changes import (
    RELEASES,
    Change,
    Choice,
    Kernel,
    Release,
    applied_changes,
    assemble,
    show_release,
)
from kvmarch.errors import KernelError, PluginError, TierError, UnknownNameError
from kvmarch.kernel import gpc
from kvmarch.kernel.table import CHANGES, CHOICES, FIXED

GROUP = "kvmarch"
PREFIX = "kvmarch_"
SLOW = 5.0
"""Seconds of importing after which a plugin is named for it."""
_WORD = re.compile(r"[a-z][a-z0-9_]*")
_KIND = re.compile(r"\??(int|name|word:\w+(\|\w+)*)")
"""What an argument of a plugin's verb may be."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A plugin that does not keep the contract, and why, in one line."""

    name: str
    distribution: str
    why: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """One architecture, checked: what it says of itself, and its operations.

    :param tier: the highest tier whose operations it has, see ``hookspecs.TIERS``.
    :param operations: function by operation name, without the prefix.
    """

    info: ArchInfo
    version: str
    distribution: str
    tier: int
    operations: Mapping[str, Any] = field(repr=False)
    changes: tuple[Change, ...] = field(repr=False)
    choices: tuple[Choice, ...] = field(repr=False)
    deviations: tuple[Deviation, ...] = field(repr=False)
    verbs: tuple[ArchVerb, ...] = field(default=(), repr=False)

    @property
    def name(self) -> str:
        """Return the architecture's name."""
        return self.info.name

    def keeps(self, rule: str, release: Release, mmu: str = "") -> bool:
        """Return whether a kernel is said to keep a rule of the contract."""
        return not any(
            rule == row.rule and row.mmu in {"", mmu} and release < row.until
            for row in self.deviations
        )


class Plugins:
    """The architectures that are there, by name, and those that were refused."""

    def __init__(
        self,
        loaded: Iterable[Loaded],
        refused: Iterable[Refused],
        warnings: Iterable[str] = (),
    ) -> None:
        self.loaded = {arch.name: arch for arch in loaded}
        self.refused = tuple(refused)
        self.warnings = tuple(warnings)
        """What is to be said of plugins that work, a line each."""

    def get(self, name: str) -> Loaded:
        """Return an architecture.

        :raises PluginError: its plugin was refused.
        :raises UnknownNameError: there is none of that name.
        """
        if name in self.loaded:
            return self.loaded[name]
        for refused in self.refused:
            if refused.name == name:
                raise PluginError(refused.why)
        raise UnknownNameError("architecture", name, sorted(self.loaded))

    def scenario_folders(self) -> tuple[str, ...]:
        """Return the folders of scenario files that plugins bring."""
        return self._folders("scenarios")

    def recording_folders(self) -> tuple[str, ...]:
        """Return the folders of recordings that plugins bring."""
        return self._folders("recordings")

    def _folders(self, hook: str) -> tuple[str, ...]:
        return tuple(
            folder
            for arch in self.loaded.values()
            if hook in arch.operations
            for folder in arch.operations[hook]()
        )


def load(*, trace: bool = False, only: Collection[str] = ()) -> Plugins:
    """Load every plugin that an entry point of the group ``kvmarch`` names.

    A plugin that breaks the contract is refused with one line; the others work.

    :param trace: print each plugin's checks to standard error.
    :param only: the architectures that are wanted, to save the time for the others;
        all if it is empty or names one that is not installed.
    """
    loaded: list[Loaded] = []
    refused: list[Refused] = []
    warnings: list[str] = []
    entry_points = list(importlib.metadata.entry_points(group=GROUP))
    if only and set(only) <= {point.name for point in entry_points}:
        entry_points = [point for point in entry_points if point.name in only]
    for point in sorted(entry_points, key=lambda p: p.name):
        dist = point.dist
        name = dist.name if dist is not None else "?"
        version = dist.version if dist is not None else "?"
        taken = next((a for a in loaded if a.name == point.name), None)
        if taken is not None:
            why = (
                f"plugin {point.name} of {name}: the name is taken by "
                f"{taken.distribution}"
            )
            refused.append(Refused(point.name, name, why))
            continue
        begun = time.perf_counter()
        try:
            module = _import(point)
            seconds = time.perf_counter() - begun
            if seconds > SLOW:
                warnings.append(
                    f"plugin {point.name}: importing {point.value} of {name} took "
                    f"{seconds:.1f} s"
                )
            loaded.append(check(point.name, module, name, version))
        except PluginError as error:
            refused.append(Refused(point.name, name, str(error)))
        if trace:
            sys.stderr.write(f"plugin {point.name}: {point.value} of {name}\n")
    return Plugins(loaded, refused, warnings)


def _import(point: importlib.metadata.EntryPoint) -> Any:
    try:
        return point.load()
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"plugin {point.name}: importing {point.value} failed: {_line(error)}"
        ) from error


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def check(name: str, module: Any, distribution: str, version: str) -> Loaded:
    """Check one plugin against the contract.

    :raises PluginError: with the plugin, the hook and the cause.
    """
    _check_api(name, module)
    manager = pluggy.PluginManager("kvmarch")
    manager.add_hookspecs(hookspecs)
    manager.add_hookspecs(toolspecs)
    try:
        manager.register(module, name)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginError(f"plugin {name}: {_line(error)}") from error
    hooks = {
        caller.name: caller.get_hookimpls()[0].function
        for caller in manager.get_hookcallers(module) or ()
        if caller.get_hookimpls()
    }
    info = _ask(name, hooks, "arch", ArchInfo)
    if info.name != name:
        raise PluginError(
            f"plugin {name}: hook {PREFIX}arch says {info.name!r}, the entry point "
            f"{name!r}"
        )
    changes = _ask_rows(name, hooks, "changes", Change)
    choices = _ask_rows(name, hooks, "choices", Choice)
    deviations = _ask_rows(name, hooks, "deviations", Deviation)
    operations = {hook.removeprefix(PREFIX): fn for hook, fn in hooks.items()}
    chosen = {choice.name for choice in choices}
    tier = 0
    missing: list[str] = []
    for number, needed in hookspecs.TIERS.items():
        missing = [n for n in needed if n not in operations and n not in chosen]
        if missing:
            break
        tier = number
    if not tier:
        raise PluginError(
            f"plugin {name}: hook {PREFIX}{missing[0]} is missing; tier 1 needs it"
        )
    _check_info(name, info)
    _check_paths(name, operations, choices)
    _check_names(name, changes, choices)
    for hook in sorted({"recordings", "scenarios"} & operations.keys()):
        _check_folders(name, hook, _ask(name, hooks, hook, Sequence))
    if "lab" in operations:
        _ask(name, hooks, "lab", LabMachine)
    verbs = _ask_rows(name, hooks, "verbs", ArchVerb)
    _check_verbs(name, verbs)
    return Loaded(
        info,
        version,
        distribution,
        tier,
        operations,
        changes,
        choices,
        deviations,
        verbs,
    )


def _check_folders(name: str, hook: str, folders: Sequence[Any]) -> None:
    """Refuse what is no sequence of paths, above all one path alone."""
    if isinstance(folders, str) or not all(isinstance(f, str) for f in folders):
        raise PluginError(
            f"plugin {name}: hook {PREFIX}{hook} must return a sequence of paths"
        )


def _check_info(name: str, info: ArchInfo) -> None:
    """Refuse an architecture without what the core reads of it."""
    where = f"plugin {name}: hook {PREFIX}arch"
    if info.first not in RELEASES:
        raise PluginError(
            f"{where}: first is {info.first!r}, no release such as (6, 1)"
        )
    if not isinstance(info.options, Mapping):
        kind = type(info.options).__name__
        raise PluginError(f"{where}: options is {kind}, not a mapping")
    for option, row in info.options.items():
        if not (isinstance(row, Option) and isinstance(row.values, tuple)):
            raise PluginError(f"{where}: option {option} is no Option with a tuple")
        if not row.values:
            raise PluginError(f"{where}: option {option} has no values")
    if not isinstance(info.options.get("page_size"), Option):
        raise PluginError(f"{where}: option page_size is missing")


def _check_names(
    name: str, changes: tuple[Change, ...], choices: tuple[Choice, ...]
) -> None:
    """Refuse names that are taken, and changes that nobody knows."""
    known = {change.name: "one of the core's" for change in CHANGES}
    for change in changes:
        why = known.get(change.name)
        if change.arch != name:
            why = f"of arch {change.arch!r}"
        if why:
            raise PluginError(
                f"plugin {name}: hook {PREFIX}changes: change {change.name} is {why}"
            )
        known[change.name] = "there twice"
    seen: set[str] = set()
    for choice in choices:
        where = f"plugin {name}: hook {PREFIX}choices: choice {choice.name}"
        if choice.name in seen:
            raise PluginError(f"{where} is there twice")
        seen.add(choice.name)
        for need in sorted({n for variant in choice.variants for n in variant.needs}):
            if need not in known:
                raise PluginError(f"{where} needs change {need}, which nobody knows")


def _check_verbs(name: str, verbs: tuple[ArchVerb, ...]) -> None:
    """Refuse verbs that no scenario could use, or that are there twice."""
    seen: set[str] = set()
    for verb in verbs:
        where = f"plugin {name}: hook {PREFIX}verbs: verb {verb.name!r}"
        if not isinstance(verb.name, str) or not _WORD.fullmatch(verb.name):
            raise PluginError(f"{where} must be a word such as apicv_inhibit")
        if verb.name in seen:
            raise PluginError(f"{where} is there twice")
        seen.add(verb.name)
        if not isinstance(verb.doc, str) or not verb.doc:
            raise PluginError(f"{where} must say what it does")
        if not callable(verb.run):
            raise PluginError(
                f"{where}: run is {type(verb.run).__name__}, not a function"
            )
        if not isinstance(verb.params, Mapping):
            raise PluginError(
                f"{where}: params is {type(verb.params).__name__}, not a mapping"
            )
        for param, kind in verb.params.items():
            if not isinstance(param, str) or not _WORD.fullmatch(param):
                raise PluginError(f"{where}: argument {param!r} must be a word")
            if not isinstance(kind, str) or not _KIND.fullmatch(kind):
                raise PluginError(
                    f"{where}: argument {param} is {kind!r}; there is int, name and "
                    "word:this|that, with ? in front where it may be left out"
                )


def _check_paths(
    name: str, operations: Mapping[str, Any], choices: tuple[Choice, ...]
) -> None:
    """Refuse a plain function where a path is wanted: it would never be run."""
    bodies = [(operation, operations.get(operation)) for operation in hookspecs.PATHS]
    bodies += [
        (choice.name, variant.value)
        for choice in choices
        if choice.name in hookspecs.PATHS
        for variant in choice.variants
    ]
    for operation, body in sorted(bodies, key=lambda b: b[0]):
        if body is not None and not inspect.iscoroutinefunction(body):
            raise PluginError(
                f"plugin {name}: hook {PREFIX}{operation} must be a coroutine "
                "function (async def)"
            )


def _check_api(name: str, module: Any) -> None:
    have = hookspecs.API_VERSION
    api = getattr(module, "KVMARCH_API", None)
    if (
        not isinstance(api, tuple)
        or len(api) != 2
        or not all(isinstance(n, int) for n in api)
    ):
        raise PluginError(f"plugin {name}: KVMARCH_API must be a pair such as {have}")
    if api[0] != have[0] or api[1] > have[1]:
        raise PluginError(
            f"plugin {name}: wants API {api[0]}.{api[1]}; "
            f"this is API {have[0]}.{have[1]}"
        )


def _ask(name: str, hooks: Mapping[str, Any], hook: str, kind: type) -> Any:
    fn = hooks.get(PREFIX + hook)
    if fn is None:
        raise PluginError(f"plugin {name}: hook {PREFIX}{hook} is missing")
    try:
        answer = fn()
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"plugin {name}: hook {PREFIX}{hook} raised {_line(error)}"
        ) from error
    if not isinstance(answer, kind):
        raise PluginError(
            f"plugin {name}: hook {PREFIX}{hook} returned "
            f"{type(answer).__name__}, not {kind.__name__}"
        )
    return answer


def _ask_rows(
    name: str, hooks: Mapping[str, Any], hook: str, kind: type
) -> tuple[Any, ...]:
    if PREFIX + hook not in hooks:
        return ()
    rows = _ask(name, hooks, hook, tuple)
    for row in rows:
        if not isinstance(row, kind):
            raise PluginError(
                f"plugin {name}: hook {PREFIX}{hook} returned a "
                f"{type(row).__name__} among its {kind.__name__} rows"
            )
    return tuple(rows)


def _nothing(*_args: Any) -> None:
    """Stand in for an optional operation."""


async def _nothing_path(*_args: Any) -> None:
    """Stand in for an optional operation that is a path."""


_DEFAULTS: dict[str, Any] = {
    "vcpu_create": _nothing,
    "vcpu_load": _nothing,
    "vcpu_reload": _nothing_path,
    "handle_request": _nothing,
    "memslots_updated": _nothing_path,
    "sync_dirty_log": _nothing_path,
    "destroy_vm": _nothing_path,
    "walk": _nothing,
    "mmu_lock_kind": "spinlock",
    "generic_dirty_log": True,
    "initially_set_log": False,
    "user_slots_before": 32,
    "mk_pte_young": True,
}
"""What an architecture gets for what it leaves out."""


def _beyond(arch: Loaded) -> dict[str, Any]:
    """Return what stands for the operations that an architecture does not reach.

    Each raises :class:`~kvmarch.errors.TierError`, except that a memslot can be
    created below tier 4 too: there is nothing yet that a kernel would have to do.
    """
    chosen = {choice.name for choice in arch.choices}
    return {
        name: _not_reached(arch, name, tier)
        for tier, names in hookspecs.TIERS.items()
        for name in names
        if name not in arch.operations and name not in chosen
    }


def _not_reached(arch: Loaded, name: str, tier: int) -> Any:
    creates = {"prepare_memory_region": 0, "commit_memory_region": None}

    def refuse(*args: Any) -> Any:
        if name in creates and args[-1] == "create":
            return creates[name]
        raise TierError(
            f"{arch.name} stops at tier {arch.tier}; {PREFIX}{name} is of tier {tier}"
        )

    async def refuse_path(*args: Any) -> Any:
        return refuse(*args)

    body = refuse_path if name in hookspecs.PATHS else refuse
    body.__name__ = name
    return body


def all_changes(plugins: Plugins) -> tuple[Change, ...]:
    """Return the generic changes and those of every architecture."""
    extra = (change for arch in plugins.loaded.values() for change in arch.changes)
    return (*CHANGES, *extra)


def link(
    arch: Loaded,
    release: Release,
    plus: Iterable[str] = (),
    minus: Iterable[str] = (),
) -> Kernel:
    """Assemble a kernel: generic core and architecture, every choice made.

    :raises KernelError: the release has no such architecture.
    """
    if release < arch.info.first:
        raise KernelError(
            f"{arch.name}: modelled from {show_release(arch.info.first)} on, "
            f"not {show_release(release)}"
        )
    applied = applied_changes((*CHANGES, *arch.changes), release, plus, minus)
    if not arch.info.pfncache:
        applied -= gpc.CHANGES
    own = {choice.name: choice for choice in arch.choices}
    fixed = {
        **_DEFAULTS,
        **_beyond(arch),
        **FIXED,
        **arch.operations,
        "arch_info": arch.info,
        "verbs": {verb.name: verb for verb in arch.verbs},
    }
    for choice in CHOICES:
        own[choice.name] = choice.joined(own.get(choice.name))
    return assemble(arch.name, release, applied, own.values(), fixed)
