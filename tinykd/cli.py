"""The command line: finds a verb's module, runs it, and turns errors into one message and one exit code.

Nothing heavy is imported here: `tinykd --help` must answer at once, so the verbs stand in a table and their modules are
imported when they are used. `docs/command-line.md` states the contract that scripts rely on.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import click

from tinykd import __version__
from tinykd.errors import TinykdError, nearest

# verb -> (module with a click command called `command`, its line in `tinykd --help`). In the order of the road.
COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("tinykd.commands.run", "The whole road, from recipe to report; continues where it was."),
    "train": ("tinykd.commands.train", "Train teacher and student as a recipe says."),
    "export": ("tinykd.commands.export", "Turn the student into ONNX and an int8 .tflite."),
    "optimize": ("tinykd.commands.optimize", "Write a smaller .tflite that computes the same, bit for bit."),
    "plan": ("tinykd.commands.plan", "Lay out SRAM and flash, and prove that they fit the board."),
    "build": ("tinykd.commands.build", "Generate C and compile the firmware."),
    "tune": ("tinykd.commands.tune", "Measure the kernels that could run a model, and keep the best."),
    "flash": ("tinykd.commands.flash", "Write the firmware to a board."),
    "bench": ("tinykd.commands.bench", "Run the firmware on a board or emulator: outputs, instructions, latency."),
    "show": ("tinykd.commands.show", "Show a model op by op: shapes, scales, MACs, bytes, and a drawing."),
    "lint": ("tinykd.commands.lint", "Name what a model pays for without need, with the mend."),
    "verify": ("tinykd.commands.verify", "Check every activation against the oracle, bit for bit."),
    "report": ("tinykd.commands.report", "Write one HTML page that shows everything."),
    "list": ("tinykd.commands.list", "Show boards, models, methods, datasets or recipes."),
    "doctor": ("tinykd.commands.doctor", "Show what is installed, what is missing and how to install it."),
    "completion": ("tinykd.commands.completion", "Print the shell code for tab completion."),
}

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


class LazyGroup(click.Group):
    """A click group that imports a verb's module when the verb is used, and not before."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order of the road."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return the verb's command; None when there is no such verb."""
        if cmd_name not in COMMANDS:
            return None
        return importlib.import_module(COMMANDS[cmd_name][0]).command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb in `args`; an unknown one is answered with the nearest."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"unknown command '{args[0]}'.{nearest(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of verbs without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(verb, help_line) for verb, (_, help_line) in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[click.shell_completion.CompletionItem]:
        """Offer the verbs without importing any of them."""
        from click.shell_completion import CompletionItem

        verbs = [CompletionItem(verb, help=line) for verb, (_, line) in COMMANDS.items() if verb.startswith(incomplete)]
        return verbs + click.Command.shell_complete(self, ctx, incomplete)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with: tinykd doctor, then tinykd run mnist5k-kd --board nucleo-f746.",
)
@click.option("--debug", is_flag=True, envvar="TINYKD_DEBUG", help="Show a traceback when something fails.")
@click.version_option(__version__, prog_name="tinykd", message="%(prog)s %(version)s")
def cli(debug: bool) -> None:
    """Train a tiny model with the help of a big one, and carry it onto a microcontroller."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit.

    Args:
        argv: arguments without the program's name; None takes those of the process.

    Exit codes: 0 done, 1 internal error, 2 usage or configuration, 3 does not fit the board, 4 model not supported,
    5 toolchain missing or failed, 6 device or emulator failed, 7 parity broken, 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or os.environ.get("TINYKD_DEBUG", "").lower() in ("1", "true", "yes", "on")
    # The switch is accepted after the verb too: it is asked for when a command line that failed is repeated.
    arguments = (["--debug"] if debug else []) + [argument for argument in arguments if argument != "--debug"]
    verb = next((argument for argument in arguments if not argument.startswith("-")), "")
    verb = verb if verb in COMMANDS else "tinykd"
    try:
        result = cli.main(args=arguments, prog_name="tinykd", standalone_mode=False)
        sys.stdout.flush()
    except TinykdError as error:
        _fail(verb, error.message, error.next_step, error.exit_code, error, debug)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(2)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "tinykd"
        _fail(verb, error.format_message(), f"See {where} --help.", 2, error, debug)
    except click.ClickException as error:
        _fail(verb, error.format_message(), "", 2, error, debug)
    except (KeyboardInterrupt, click.Abort) as error:
        _fail(
            verb, "interrupted", "Finished stages are kept; the same command continues.", EXIT_INTERRUPTED, error, debug
        )
    except BrokenPipeError:
        # The reader (head, less) has gone; what is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except MemoryError as error:
        _fail(verb, "out of memory", "Close other programs, or take a smaller batch or teacher.", 1, error, debug)
    except ModuleNotFoundError as error:
        _fail(verb, *_missing_module(error), error, debug)
    except OSError as error:
        _fail(verb, *_os_error(error), error, debug)
    except Exception as error:
        message = f"internal error: {type(error).__name__}: {error}"
        _fail(
            verb,
            message,
            "This is a bug in tinykd: report it with the output of the same command and --debug.",
            1,
            error,
            debug,
        )
    # Without standalone mode click hands back the code of ctx.exit(), or what the command returned.
    sys.exit(result if isinstance(result, int) else 0)


def _fail(verb: str, message: str, next_step: str, exit_code: int, error: BaseException, debug: bool) -> NoReturn:
    """Print `<verb>: message` and the indented next step on stderr, then exit."""
    if debug:
        traceback.print_exception(error)
    prefix = "" if message.startswith(f"{verb}: ") else f"{verb}: "
    lines = [*f"{prefix}{message}".splitlines()]
    indent = " " * (len(verb) + 2)
    lines += [f"{indent}{line}" for line in next_step.splitlines()]
    click.echo("\n".join(lines), err=True)
    sys.exit(exit_code)


# Import name -> extra that brings it. What is not here belongs to the base.
_EXTRAS = {
    "capstone": "sim",
    "mlxtend": "train",
    "onnx": "train",
    "PIL": "train",
    "platformio": "build",
    "SCons": "build",
    "safetensors": "train",
    "tensorboard": "train",
    "tflite_micro": "oracle",
    "timm": "timm",
    "torch": "train",
    "unicorn": "sim",
}


def _missing_module(error: ModuleNotFoundError) -> tuple[str, str, int]:
    """Return (message, next step, exit code) for an import that failed."""
    module = (error.name or "").partition(".")[0]
    if module in _EXTRAS:
        step = f"Install it with: pip install 'tinykd[{_EXTRAS[module]}]' (tinykd doctor shows what else is missing)."
        return f"needs the Python package '{module}', which is not installed", step, 5
    if module == "tinykd":
        return f"internal error: {error.name} is missing from this installation", "Reinstall tinykd.", 1
    return f"needs the Python package '{module or error}', which is not installed", "Reinstall tinykd with pip.", 5


def _os_error(error: OSError) -> tuple[str, str, int]:
    """Return (message, next step, exit code) for an error of the operating system that no stage explained."""
    where = f" on {error.filename}" if error.filename else ""
    what = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"the disk is full{where}",
            "Free disk space or choose another folder with --out; nothing was replaced.",
            2,
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"not permitted{where}: {what}", "Choose a folder that you may write to with --out.", 2
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
        return f"no such file{where}: {what}", "Check the path.", 2
    return f"the operating system failed{where}: {what}", "Repeat with --debug to see where.", 1


if __name__ == "__main__":
    main()
