"""`tinykd doctor`: what is installed, what is missing, and the command that installs it."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from tinykd import __version__
from tinykd.errors import TinykdError, ToolchainError
from tinykd.resources import find_resource

# Import name -> (distribution, extra). The base has the extra "".
_PACKAGES = {
    "click": ("click", ""),
    "flatbuffers": ("flatbuffers", ""),
    "jinja2": ("jinja2", ""),
    "numpy": ("numpy", ""),
    "pydantic": ("pydantic", ""),
    "elftools": ("pyelftools", ""),
    "serial": ("pyserial", ""),
    "yaml": ("PyYAML", ""),
    "rich": ("rich", ""),
    "tflite": ("tflite", ""),
    "torch": ("torch", "train"),
    "onnx": ("onnx", "train"),
    "safetensors": ("safetensors", "train"),
    "mlxtend": ("mlxtend", "train"),
    "PIL": ("pillow", "train"),
    "tensorboard": ("tensorboard", "train"),
    "tflite_micro": ("tflite-micro", "oracle"),
    "ai_edge_litert": ("ai-edge-litert", "crosscheck"),
    "onnxruntime": ("onnxruntime", "crosscheck"),
    "platformio": ("platformio", "build"),
    "SCons": ("SCons", "build"),
    "capstone": ("capstone", "sim"),
    "unicorn": ("unicorn", "sim"),
    "timm": ("timm", "timm"),
}

_NEEDED_FOR = {
    "": "everything",
    "train": "train, export",
    "oracle": "verify",
    "crosscheck": "verify: second opinions",
    "build": "build, flash",
    "sim": "bench --sim",
    "timm": "timm teachers",
}

# What a first import costs keeps these from being imported only to see whether they work.
_SLOW_IMPORTS = {"ai_edge_litert", "mlxtend", "onnxruntime", "tensorboard", "timm"}


@dataclass(frozen=True)
class Check:
    """One line of the diagnosis.

    Attributes:
        name: what was looked for.
        status: "ok", "missing" (not there), "broken" (there, does not work) or "info" (nothing to judge).
        essential: whether tinykd cannot work at all without it.
        version: what was found; "" when nothing.
        needed_for: the verbs that use it.
        fix: the exact command that mends it; "" when nothing is to be done.
    """

    name: str
    status: str
    essential: bool
    version: str = ""
    needed_for: str = ""
    fix: str = ""


def diagnose() -> list[Check]:
    """Return every check in the order in which a new user needs the things."""
    return [check_python(), check_resources(), *check_packages(), check_gpu(), *check_arm(), *check_serial()]


def check_python() -> Check:
    """Check the interpreter against the versions that tinykd is tested with."""
    ok = (3, 10) <= sys.version_info[:2] < (3, 14)
    fix = "" if ok else "Use Python 3.10 to 3.13, for example: make setup PYTHON=python3.12"
    return Check("python", "ok" if ok else "broken", True, platform.python_version(), "everything", fix)


def check_resources() -> Check:
    """Check that `boards/` and `firmware/` came with the installation."""
    try:
        boards = list(find_resource("boards").glob("*.toml"))
        find_resource("firmware")
    except TinykdError as error:
        return Check("boards and firmware", "missing", True, "", "everything", error.next_step)
    where = "checkout" if is_checkout() else "installed"
    return Check(
        "boards and firmware", "ok" if boards else "broken", True, f"{len(boards)} boards ({where})", "everything"
    )


def is_checkout() -> bool:
    """Whether this is a source tree rather than an installed wheel."""
    return (Path(__file__).resolve().parents[2] / "pyproject.toml").is_file()


def check_packages() -> Iterator[Check]:
    """Check every Python package that some verb needs; packages that are quick to import are imported."""
    for module, (distribution, extra) in _PACKAGES.items():
        essential = extra == ""
        fix = install_command(extra)
        try:
            version = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            if module == "tflite_micro" and not _oracle_has_wheels():
                yield Check(distribution, "info", False, "no wheel for this system", _NEEDED_FOR[extra])
            else:
                yield Check(distribution, "missing", essential, "", _NEEDED_FOR[extra], fix)
            continue
        fault = "" if module in _SLOW_IMPORTS else _import_fault(module)
        if fault:
            fix = f"{sys.executable} -m pip install --force-reinstall {distribution}=={version}"
        status, fix = ("broken", fix) if fault else ("ok", "")
        yield Check(distribution, status, essential, f"{version} {fault}".strip(), _NEEDED_FOR[extra], fix)


def _oracle_has_wheels() -> bool:
    return sys.platform == "linux" and platform.machine() in ("x86_64", "AMD64")


def _import_fault(module: str) -> str:
    # Native libraries fail in their own ways (OSError, RuntimeError), and a doctor must survive all of them.
    try:
        importlib.import_module(module)
    except Exception as error:
        return f"cannot be imported: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    return ""


def install_command(extra: str) -> str:
    """Return the pip command that installs an extra ("" for the base) the way this tinykd was installed."""
    wanted = f"[{extra}]" if extra else ""
    if is_checkout():
        root = Path(__file__).resolve().parents[2]
        return f"{sys.executable} -m pip install -c {root / 'constraints.txt'} -e '{root}{wanted}'"
    return f"{sys.executable} -m pip install 'tinykd{wanted}'"


def check_gpu() -> Check:
    """Report the GPU that training would use."""
    try:
        import torch

        name = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none: the CPU trains"
    except Exception:
        name = "unknown without torch"
    return Check("GPU", "info", False, name, "train (faster)")


def check_arm() -> Iterator[Check]:
    """Check the Arm compiler and its C library by using them."""
    fix = arm_install_command()
    compiler = shutil.which("arm-none-eabi-gcc")
    if compiler is None:
        yield Check("arm-none-eabi-gcc", "missing", False, "", "build", fix)
        yield Check("newlib (nano)", "missing", False, "", "build", fix)
        return
    found = _output([compiler, "--version"])
    match = re.search(r"\d+\.\d+\.\d+", found)
    yield Check(
        "arm-none-eabi-gcc",
        "ok" if match else "broken",
        False,
        f"{match.group()} ({compiler})" if match else f"{compiler} does not answer",
        "build",
        "" if match else fix,
    )
    # gcc prints the bare name when it does not find the file.
    specs = _output([compiler, "-print-file-name=nano.specs"]).strip()
    has_newlib = os.path.sep in specs
    yield Check(
        "newlib (nano)",
        "ok" if has_newlib else "missing",
        False,
        "nano.specs beside the compiler" if has_newlib else "",
        "build",
        "" if has_newlib else fix,
    )


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def arm_install_command() -> str:
    """Return the command that installs the Arm compiler on this system."""
    sudo = "" if not hasattr(os, "geteuid") or os.geteuid() == 0 else "sudo "
    for manager, packages in (
        ("apt-get", "install gcc-arm-none-eabi libnewlib-arm-none-eabi"),
        ("dnf", "install arm-none-eabi-gcc-cs arm-none-eabi-newlib"),
        ("pacman", "-S arm-none-eabi-gcc arm-none-eabi-newlib"),
    ):
        if shutil.which(manager):
            return f"{sudo}{manager} {packages}"
    if sys.platform == "darwin":
        return "brew install --cask gcc-arm-embedded"
    return "Install the Arm GNU Toolchain (arm-none-eabi) and put its bin folder on the PATH"


def check_serial() -> Iterator[Check]:
    """Look for boards on USB and check that this user may open their ports."""
    try:
        from serial.tools import list_ports

        from tinykd.board import list_boards, load_board

        names: dict[str, list[str]] = {}
        for board in list_boards():
            for usb_id in load_board(board).usb_ids:
                names.setdefault(usb_id.lower(), []).append(board)
        ports = [port for port in list_ports.comports() if port.vid is not None]
    except (ImportError, TinykdError, OSError):
        return
    found = [(port, names.get(f"{port.vid:04x}:{port.pid:04x}", [])) for port in ports]
    known = [(port, boards) for port, boards in found if boards]
    if not known:
        yield Check("board on USB", "info", False, "none; an emulator needs none", "flash, bench --port")
    for port, boards in known:
        allowed = os.access(port.device, os.R_OK | os.W_OK)
        fix = "" if allowed else f"sudo usermod -aG dialout {os.environ.get('USER', '$USER')}, then log in again"
        version = f"probe of {' or '.join(boards)}" + ("" if allowed else ", no permission to open it")
        yield Check(port.device, "ok" if allowed else "broken", False, version, "flash, bench --port", fix)


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else on stdout.")
def command(as_json: bool) -> None:
    """Show what is installed, what is missing, and the command that installs it.

    Exits with 0 when everything essential is there; what only some verbs need may be missing.
    """
    checks = diagnose()
    bad = [check.name for check in checks if check.essential and check.status != "ok"]
    if as_json:
        result = {"ok": not bad, "tinykd": __version__, "checks": [asdict(check) for check in checks]}
        click.echo(json.dumps(result, sort_keys=True))
    else:
        _print_table(checks)
    if bad:
        raise ToolchainError(f"essential parts are missing or broken: {', '.join(bad)}", "Run the commands above.")


def _print_table(checks: list[Check]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colors = {"ok": "green", "missing": "yellow", "broken": "red", "info": "blue"}
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for title in ("what", "status", "found", "needed for"):
        table.add_column(title, no_wrap=title in ("what", "status"))
    for check in checks:
        status = Text(check.status, colors[check.status])
        table.add_row(Text(check.name), status, Text(check.version or "-"), Text(check.needed_for))
    console = Console()
    console.print(table)
    # Several missing packages of one extra have one command, printed whole so that it can be copied.
    fixes = list(dict.fromkeys(check.fix for check in checks if check.fix))
    if fixes:
        optional = not any(check.fix and check.essential for check in checks)
        console.print(f"\nTo install what is missing{' (all of it is optional)' if optional else ''}:")
        for fix in fixes:
            console.print(Text(f"  {fix}"), soft_wrap=True)
    else:
        console.print("\nEverything is there.")
