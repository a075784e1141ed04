"""`tinykd doctor`: says what is there, what is missing, and the command that mends it."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from tinykd.commands import doctor
from tinykd.errors import ToolchainError


@pytest.fixture
def no_tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Make every program of the PATH disappear."""
    monkeypatch.setenv("PATH", str(tmp_path))


def by_name(checks) -> dict[str, doctor.Check]:
    """Return checks by their name."""
    return {check.name: check for check in checks}


def test_everything_essential_is_found_here() -> None:
    """Where the tests run, the essentials are in order, and the JSON object says so."""
    done = CliRunner().invoke(doctor.command, ["--json"])
    assert done.exit_code == 0
    report = json.loads(done.stdout)
    assert report["ok"] is True
    assert {"name", "status", "essential", "version", "needed_for", "fix"} == set(report["checks"][0])
    assert all(check["status"] == "ok" for check in report["checks"] if check["essential"])


def test_every_fault_comes_with_a_command() -> None:
    """Nothing is called missing or broken without saying what to do."""
    assert [check.name for check in doctor.diagnose() if check.status in ("missing", "broken") and not check.fix] == []


def test_missing_compiler_is_not_essential_but_named(no_tools: None) -> None:
    """Without a compiler, build is impossible and planning is not: the check says what installs it."""
    checks = by_name(doctor.check_arm())
    assert {check.status for check in checks.values()} == {"missing"}
    assert not any(check.essential for check in checks.values())
    assert all(check.fix for check in checks.values())


def test_a_compiler_that_does_not_run_is_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file called arm-none-eabi-gcc that answers nothing is reported as broken, not as there."""
    fake = tmp_path / "arm-none-eabi-gcc"
    fake.write_text("#!/bin/sh\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert by_name(doctor.check_arm())["arm-none-eabi-gcc"].status == "broken"


def test_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """An uninstalled optional package is 'missing' with the pip command of its extra; an essential one fails."""
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name in ("torch", "rich"):
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(doctor.importlib.metadata, "version", version)
    checks = by_name(doctor.check_packages())
    assert checks["torch"].status == "missing" and "[train]" in checks["torch"].fix and not checks["torch"].essential
    assert checks["rich"].status == "missing" and checks["rich"].essential
    done = CliRunner().invoke(doctor.command, ["--json"])
    assert isinstance(done.exception, ToolchainError) and "rich" in done.exception.message
    assert json.loads(done.stdout)["ok"] is False


def test_package_that_cannot_be_imported_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A native library that fails to load is reported with its own words, and the diagnosis goes on."""
    real = doctor.importlib.import_module

    def load(name: str):
        if name == "unicorn":
            raise OSError("libunicorn.so.2: cannot open shared object file")
        return real(name)

    try:
        importlib.metadata.version("unicorn")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("unicorn is not installed (pip install 'tinykd[sim]')")
    monkeypatch.setattr(doctor.importlib, "import_module", load)
    checks = by_name(doctor.check_packages())
    assert checks["unicorn"].status == "broken" and "libunicorn" in checks["unicorn"].version
    assert checks["tflite"].status == "ok"


def test_unreadable_port_is_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A known probe whose device file may not be opened gets the command for the right group."""
    from types import SimpleNamespace

    from serial.tools import list_ports

    port = SimpleNamespace(device=str(tmp_path / "ttyACM0"), vid=0x0483, pid=0x374B)
    monkeypatch.setattr(list_ports, "comports", lambda: [port])
    (check,) = doctor.check_serial()
    assert check.status == "broken" and "dialout" in check.fix and "nucleo-f746" in check.version


def test_advice_fits_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command for the Arm compiler is that of the package manager that is there."""
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/dnf" if name == "dnf" else None)
    assert "dnf install arm-none-eabi-gcc-cs" in doctor.arm_install_command()
