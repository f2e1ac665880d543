"""The commands that boot real kernels."""

__all__ = ["boot_options", "boot_plan", "lab", "showing_console"]

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvmarch.cli.commands import load_plugins, scenario_of
from kvmarch.cli.shared import F, Group, change_options, settings_of, with_options
from kvmarch.cli.values import ARCH, FILE, FOLDER, IMAGE, RELEASE, SCENARIO
from kvmarch.errors import KvmarchError, LabError

if TYPE_CHECKING:
    from kvmarch.lab.session import Config
    from kvmarch.plugins import Loaded


@click.group(cls=Group, invoke_without_command=True)
@click.pass_context
def lab(ctx: click.Context) -> None:
    """Run scenarios on real kernels, under QEMU's emulation."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


_ARCH = click.option(
    "--arch", "-a", type=ARCH, required=True, metavar="NAME", help="Architecture."
)
_BOOT: tuple[Callable[[Any], Any], ...] = (
    _ARCH,
    click.option(
        "--kernel",
        "-k",
        type=IMAGE,
        required=True,
        metavar="IMAGE|RELEASE",
        help="A vmlinuz, or a release of Debian's such as 6.1 or 6.1.0-50-arm64.",
    ),
    click.option(
        "--modules",
        type=FOLDER,
        metavar="FOLDER",
        help="With an image: where its modules are, such as /lib/modules/RELEASE.",
    ),
    click.option(
        "--mirror", metavar="URL", help="Where packages are; as for apt if left out."
    ),
    click.option(
        "--module-arg",
        "arguments",
        multiple=True,
        metavar="MODULE.NAME=VALUE",
        help="An argument of a module, such as kvm.tdp_mmu=0.",
    ),
    click.option(
        "--append",
        default="",
        metavar="WORDS",
        help="More words for the kernel's command line.",
    ),
    click.option(
        "--cpu",
        default="",
        metavar="MODEL",
        help="QEMU's CPU model, such as max; that of the architecture if left out.",
    ),
    click.option(
        "--ram",
        "mib",
        type=click.IntRange(128, 1 << 16),
        default=256,
        show_default=True,
        metavar="MIB",
        help="The machine's memory, in MiB.",
    ),
    click.option(
        "--limit",
        type=click.FloatRange(1),
        default=60,
        show_default=True,
        metavar="SECONDS",
        help="How long a step may take; a boot may take three times as long.",
    ),
)


def boot_options(function: F) -> F:
    """Add what says which kernel is booted, and how."""
    return with_options(function, *_BOOT)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be booted."""

    arch: "Loaded"
    config: "Config"


def boot_plan(plugins: Any, given: dict[str, Any]) -> Plan:
    """Return what :func:`boot_options` say; fetches a kernel that is not there.

    :param given: the options by name; they are taken out.
    """
    from kvmarch.lab.fetch import fetch
    from kvmarch.lab.kernels import known
    from kvmarch.lab.machines import machine_of
    from kvmarch.lab.session import Config, check_programs

    arch = plugins.get(given.pop("arch"))
    machine = machine_of(arch)
    arguments: dict[str, str] = {}
    for text in given.pop("arguments"):
        name, dot, rest = text.partition(".")
        if not dot or "=" not in rest:
            raise KvmarchError(f"--module-arg {text!r} is none such as kvm.tdp_mmu=0")
        arguments[name.replace("_", "-")] = " ".join(
            filter(None, [arguments.get(name.replace("_", "-")), rest])
        )
    cpu = given.pop("cpu")
    wanted, mirror = given.pop("kernel"), given.pop("mirror")
    kernel = known(machine, wanted, given.pop("modules"))
    check_programs(machine)
    if kernel is None:
        kernel = fetch(machine, wanted, mirror, _tell)
    _tell(f"booting {kernel.name} with {machine.qemu}")
    return Plan(
        arch,
        Config(
            kernel,
            arguments=arguments,
            append=given.pop("append"),
            mib=given.pop("mib"),
            limit=given.pop("limit"),
            cpu=cpu,
        ),
    )


def _tell(text: str) -> None:
    click.echo(f"kvmarch: {text}", err=True)


@contextlib.contextmanager
def showing_console() -> Iterator[None]:
    """Print the end of the console before an error that has one; heed signals."""
    from kvmarch.lab.qemu import ending_on_signals

    with ending_on_signals():
        try:
            yield
        except LabError as error:
            if error.console:
                click.echo(f"{error.console.rstrip()}\n", err=True)
            raise
        except ImportError as error:
            raise LabError(
                f"the lab needs {error.name or error}: install kvmarch[lab]"
            ) from None
        except BrokenPipeError:
            raise
        except OSError as error:
            # The cache, or files for the meantime: full, or not to be written to.
            where = f"{error.filename}: " if error.filename else ""
            raise LabError(f"{where}{error.strerror}") from None


@lab.command()
@click.argument(
    "scenarios", type=SCENARIO, nargs=-1, required=True, metavar="SCENARIO..."
)
@boot_options
@click.option(
    "--output",
    "-o",
    type=FILE,
    metavar="FILE",
    help="The recording, or a folder; SCENARIO-ARCH-KERNEL.json here if left out.",
)
def run(scenarios: tuple[str, ...], output: str | None, **given: Any) -> None:
    """Record what scenarios do on a real kernel.

    Everything that can be seen is kept after each step. One boot serves all scenarios;
    each has a VM and a process of its own.
    """
    with showing_console():
        from kvmarch.lab.record import check, record

        plugins = load_plugins()
        chosen = [scenario_of(name, plugins) for name in scenarios]
        place = Path(output) if output else None
        check(chosen, place)
        plan = boot_plan(plugins, given)
        for path in record(plan.arch, plan.config, chosen, place, _tell):
            click.echo(f"{path}: recorded; compare it with 'kvmarch conform {path}'")


@lab.command()
@click.argument("release")
@_ARCH
@click.option("--mirror", metavar="URL", help="As for apt if left out.")
def fetch(release: str, arch: str, mirror: str | None) -> None:
    """Download a kernel of Debian's into the cache.

    The system's apt is asked for its mirrors only; nothing of it is changed.
    """
    from kvmarch.lab.fetch import fetch as work
    from kvmarch.lab.machines import machine_of

    with showing_console():
        machine = machine_of(load_plugins().get(arch))
        kernel = work(machine, release, mirror, _tell)
    click.echo(f"{kernel.name}: {kernel.image.parent}")


@lab.command()
@boot_options
@change_options
@click.option(
    "--seed", type=int, required=True, help="Number that decides the sequences."
)
@click.option(
    "--steps",
    type=click.IntRange(1),
    default=500,
    show_default=True,
    help="How many steps to compare.",
)
@click.option(
    "--first",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="The process of the seed's row to begin with.",
)
@click.option(
    "--differences",
    "most",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="End after so many.",
)
@click.option(
    "--against",
    type=click.Choice(["kernel", "model"]),
    default="kernel",
    show_default=True,
    help="A booted kernel, or nothing but the model at --kernel.",
)
@click.option(
    "--model",
    "release",
    type=RELEASE,
    default="",
    metavar="RELEASE",
    help="The model's release; that of --kernel if left out.",
)
@click.option(
    "--save",
    "folder",
    type=FOLDER,
    default=".",
    metavar="FOLDER",
    help="Where differences go.",
)
def fuzz(
    seed: int,
    steps: int,
    first: int,
    most: int,
    against: str,
    release: str,
    folder: str,
    plus: tuple[str, ...],
    minus: tuple[str, ...],
    settings: tuple[str, ...],
    **given: Any,
) -> None:
    """Hold the model against a real kernel, in random sequences of steps.

    After each step answers, tables, pages and trace events are compared. What
    differs is shrunk to the shortest sequence that shows it, and kept as a scenario
    and a recording.
    """
    with showing_console():
        from kvmarch.lab.fuzz.command import Asked, fuzz_kernel, fuzz_models

    place = Path(folder)
    if not place.is_dir():
        raise KvmarchError(f"--save {folder}: no such folder")
    asked = Asked(
        seed, steps, first, most, place, release, plus, minus, settings_of(settings)
    )
    if against == "model":
        arch = load_plugins().get(given["arch"])
        count = fuzz_models(arch, given["kernel"], asked, click.echo)
    else:
        with showing_console():
            plan = boot_plan(load_plugins(), given)
            count = fuzz_kernel(plan.arch, plan.config, asked, click.echo)
    if count:
        click.get_current_context().exit(1)
