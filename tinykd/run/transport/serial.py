"""A board on a serial port (pyserial)."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from tinykd.board import Board
from tinykd.errors import DeviceError


@dataclass(frozen=True)
class Port:
    """A serial port: its path, its USB ids ("0483:374b"; "" when it is no USB device), a description for people."""

    path: str
    usb_id: str
    description: str


def _pyserial() -> Any:
    try:
        import serial
    except ImportError as error:
        raise DeviceError(
            "pyserial is not installed", "Install it: pip install pyserial (tinykd doctor checks it)."
        ) from error
    return serial


def list_ports() -> list[Port]:
    """Return the serial ports of this machine, sorted by path."""
    _pyserial()
    from serial.tools import list_ports as tools

    return sorted(
        (
            Port(port.device, "" if port.vid is None else f"{port.vid:04x}:{port.pid:04x}", port.description or "")
            for port in tools.comports()
        ),
        key=lambda port: port.path,
    )


def find_port(board: Board, ports: Callable[[], Iterable[Port]] = list_ports) -> str:
    """Return the path of the only port with one of the board's USB ids.

    Raises:
        DeviceError: there is none, or more than one: no guessing between two boards.
    """
    if not board.usb_ids:
        raise DeviceError(f"the file of board '{board.name}' names no USB ids", "Say which port it is: --port PATH.")
    here = list(ports())
    found = [port for port in here if port.usb_id in board.usb_ids]
    if not found:
        seen = ", ".join(f"{port.path} ({port.usb_id or 'no USB'})" for port in here) or "none"
        raise DeviceError(
            f"no board '{board.name}' is connected: no serial port has the USB id {' or '.join(board.usb_ids)}; "
            f"ports here: {seen}",
            "Connect it, say which port it is (--port PATH), or emulate it (--sim unicorn).",
        )
    if len(found) > 1:
        raise DeviceError(
            f"{len(found)} ports could be the board '{board.name}': {', '.join(port.path for port in found)}",
            "Say which one: --port PATH.",
        )
    return found[0].path


class SerialTransport:
    """A serial port behind the transport interface. The port is opened exclusively.

    Args:
        path: "/dev/ttyACM0", "COM3".
        baud: bits per second.

    Raises:
        DeviceError: missing port, no permission, in use; at any later call: the port vanished.
    """

    counter_unit: Literal["cycles", "instructions", "none"] = "cycles"
    counter = None

    def __init__(self, path: str, baud: int) -> None:
        self.name = path
        serial = _pyserial()
        self._errors = (serial.SerialException, OSError, *_terminal_errors())
        try:
            self._port = serial.Serial(path, baud, timeout=0, write_timeout=10, exclusive=True)
        except (*self._errors, ValueError) as error:
            raise _opening_failed(path, error) from error

    def write(self, data: bytes) -> None:
        """Send bytes; blocks until the operating system has taken all of them."""
        try:
            self._port.write(data)
            self._port.flush()
        except self._errors as error:
            raise self._lost(error) from error

    def read(self, timeout_s: float) -> bytes:
        """Return what has come, after at most `timeout_s` seconds."""
        try:
            self._port.timeout = max(0.0, timeout_s)
            data = self._port.read(1)
            if data and (waiting := self._port.in_waiting):
                self._port.timeout = 0
                data += self._port.read(waiting)
        except self._errors as error:
            raise self._lost(error) from error
        return bytes(data)

    def close(self) -> None:
        """Close the port."""
        self._port.close()

    def _lost(self, error: Exception) -> DeviceError:
        return DeviceError(
            f"{self.name}: the connection to the board was lost: {error}",
            "Check the cable, then run the command again.",
        )


def _terminal_errors() -> tuple[type[Exception], ...]:
    """What pyserial lets through on POSIX when a port vanishes: termios.error is no OSError."""
    try:
        import termios
    except ImportError:  # Windows
        return ()
    return (termios.error,)


def _opening_failed(path: str, error: Exception) -> DeviceError:
    code = getattr(error, "errno", None)
    if code in (errno.EACCES, errno.EPERM):
        return DeviceError(
            f"{path}: no permission to open the port",
            "Add yourself to the group that owns it (often: sudo usermod -aG dialout $USER), then log in again.",
        )
    if code == errno.ENOENT:
        known = ", ".join(port.path for port in list_ports()) or "none"
        return DeviceError(f"{path}: there is no such port; ports here: {known}", "Check the cable and the name.")
    if code in (errno.EBUSY, errno.EAGAIN):
        return DeviceError(f"{path}: another program uses the port", "Close the serial monitor that has it open.")
    return DeviceError(f"{path}: cannot open the port: {error}")
