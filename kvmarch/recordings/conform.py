"""Compare a recording with the model, stage by stage.

The model plays the tour on the recording's architecture, release and parameters.
Nothing is skipped silently: what cannot be compared is a row of its own.
"""

__all__ = ["conform"]

import re
from collections.abc import Mapping
from itertools import product

from kvmarch.blame import blaming
from kvmarch.changes import (
    RELEASES,
    Kernel,
    Release,
    find_release,
    show_release,
)
from kvmarch.errors import (
    KvmarchError,
    PluginError,
    RecordingError,
    TierError,
    UnknownNameError,
)
from kvmarch.plugins import Loaded, Plugins, link
from kvmarch.recordings.read import Recording, load, shipped
from kvmarch.recordings.stages import Comparison, Finding
from kvmarch.scenarios.file import find
from kvmarch.scenarios.file import load as load_scenario
from kvmarch.scenarios.play import play


def conform(
    recording: Recording,
    plugins: Plugins,
    *,
    plus: tuple[str, ...] = (),
    minus: tuple[str, ...] = (),
    given: Mapping[str, str] | None = None,
) -> list[Finding]:
    """Compare one recording with the model.

    :param given: options of the machine that the user sets.
    :raises RecordingError: the architecture is one that nobody ever recorded.
    """
    if recording.arch not in plugins.loaded:
        there = shipped(plugins.recording_folders())
        recorded = {load(path).arch for path in there}
        if recording.arch not in recorded:
            known = sorted({*plugins.loaded, *recorded})
            raise RecordingError(
                f"{recording.name}: arch: unknown architecture {recording.arch!r}; "
                f"there is {', '.join(known)}"
            )
        why = f"architecture {recording.arch} is not installed"
        return [Finding(recording.name, "", "recording", "not compared", why)]
    arch = plugins.get(recording.arch)
    release, notes = _release(recording)
    options = {"page_size": str(recording.page_size), **(given or {})}
    for name, value in recording.parameters.items():
        known_parameter = arch.info.parameters.get(name)
        if known_parameter is None:
            notes.append(f"the model has no parameter {name}={value}")
        elif value not in known_parameter[1]:
            why = f"{name}={value} is not modelled"
            return [Finding(recording.name, "", "recording", "not compared", why)]
        else:
            option, values = known_parameter
            options.setdefault(option, str(values[value]))

    def fit(arch: Loaded) -> tuple[Comparison, str]:
        return _fit(recording, link(arch, release, plus, minus), options)

    try:
        with blaming(arch, fit):
            comparison, inferred = fit(arch)
    except PluginError as error:
        # The recordings of other architectures are compared all the same.
        verdict = "not compared" if isinstance(error, TierError) else "error"
        return [Finding(recording.name, "", "recording", verdict, str(error))]
    except KvmarchError as error:
        raise RecordingError(f"{recording.name}: {error}") from None
    if inferred:
        notes.append(f"{inferred} is inferred from the first look, not recorded")
    findings = [
        Finding(recording.name, "", "parameters", "not compared", note)
        for note in notes
    ]
    if recording.broken_off:
        why = "recording broke off here; what came before is compared"
        findings.append(
            Finding(
                recording.name, recording.broken_off, "recording", "not compared", why
            )
        )
    findings.extend(comparison.findings())
    return findings


def _release(recording: Recording) -> tuple[Release, list[str]]:
    """Return the release to play, and a note if the recording's is too new."""
    try:
        return find_release(recording.kernel), []
    except UnknownNameError as error:
        numbers = re.match(r"v?(\d+)\.(\d+)", recording.kernel)
        newest = RELEASES[-1]
        if numbers and (int(numbers[1]), int(numbers[2])) > newest:
            shown = show_release(newest)
            note = f"{recording.kernel} is newer than the model; {shown} is played"
            return newest, [note]
        raise RecordingError(f"{recording.name}: kernel: {error}") from None


def _fit(
    recording: Recording, k: Kernel, options: dict[str, str]
) -> tuple[Comparison, str]:
    """Play what was recorded, with hardware options that fit the first look.

    What a recording states is taken. What it leaves open is the architecture's
    default, unless the first look differs then and agrees with another value.
    """
    scenario = recording.program or load_scenario(find("tour"))

    def attempt(more: dict[str, str]) -> Comparison:
        settled = k.arch_info.settle(k.release, {**options, **more})
        return Comparison(recording, play(scenario, k, settled), settled)

    first = attempt({})
    open_names = [n for n in k.arch_info.inferred if n not in options]
    if first.first_look_agrees() or not open_names:
        return first, ""
    choices = [k.arch_info.options[n].available(k.release) for n in open_names]
    for values in product(*choices):
        more = {n: str(v) for n, v in zip(open_names, values, strict=True)}
        other = attempt(more)
        if other.first_look_agrees():
            text = ", ".join(
                f"{n}={v}" for n, v in more.items() if str(first.options[n]) != v
            )
            return other, text
    return first, ""
