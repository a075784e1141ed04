"""The serial transport: against a pseudo-terminal that plays a board, and against a real one where there is one."""

import errno
import os
from pathlib import Path

import pytest
from hw.ptyboard import PtyBoard

from tinykd.board import load_board
from tinykd.errors import DeviceError
from tinykd.run import flash
from tinykd.run.session import DeviceSilentError, Session
from tinykd.run.transport import open_serial
from tinykd.run.transport import serial as serial_transport
from tinykd.run.transport.fake import FakeDevice
from tinykd.run.transport.serial import Port, SerialTransport, find_port

pytest.importorskip("serial", reason="needs pyserial")
pytest.importorskip("pty", reason="needs pseudo-terminals")
BOARD = load_board("nucleo-f746")


def model(x: bytes) -> bytes:
    """Reverse the first ten bytes."""
    return x[9::-1]


@pytest.fixture
def board():
    """A board that answers."""
    return PtyBoard(FakeDevice(model, 64, 10))


def test_inferences_over_a_serial_port(board):
    """A whole session over a terminal device, with cycles from the board."""
    transport = open_serial(BOARD, board.path)
    session = Session(transport)
    assert session.hello().board == "fake"
    for index in range(20):
        x = bytes((index + value) & 0xFF for value in range(64))
        output, invoked = session.infer(x, 10)
        assert (output, invoked.cycles) == (model(x), 300)
    assert session.echo(bytes(1024)) == bytes(1024)
    assert transport.counter is None
    transport.close()


def test_a_silent_port_is_reported():
    """A port where nobody answers ends in an error after the attempts, not in a wait for ever."""
    silent = PtyBoard(None)
    transport = SerialTransport(silent.path, 115200)
    with pytest.raises(DeviceSilentError, match=f"{silent.path}: no answer to HELLO after 2 attempts"):
        Session(transport, attempts=2).hello()
    transport.close()


def test_a_port_that_vanishes_is_reported(board):
    """Pulling the cable during a session gives DeviceError with the port's name."""
    transport = SerialTransport(board.path, 115200)
    session = Session(transport, attempts=2)
    session.hello()
    board.unplug()
    with pytest.raises(DeviceError, match=board.path):
        for _ in range(3):
            session.echo(b"?")


def test_a_missing_port_is_reported():
    """The message names the ports that there are."""
    with pytest.raises(DeviceError, match="no such port; ports here"):
        SerialTransport("/dev/ttyTINYKD", 115200)


def test_a_port_without_permission_is_reported(monkeypatch):
    """Permission denied names the group that helps."""
    import serial

    def refuse(*_, **__):
        raise serial.SerialException(errno.EACCES, "Permission denied")

    monkeypatch.setattr(serial, "Serial", refuse)
    with pytest.raises(DeviceError, match="no permission") as caught:
        SerialTransport("/dev/ttyACM0", 115200)
    assert "dialout" in caught.value.next_step


def test_a_port_in_use_is_reported(board):
    """A second program that opens the same port is told so."""
    import fcntl

    holder = SerialTransport(board.path, 115200)
    fcntl.flock(holder._port.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    with pytest.raises(DeviceError, match="another program|cannot open"):
        SerialTransport(board.path, 115200)
    holder.close()


def test_the_port_is_found_by_its_usb_id():
    """The only port with one of the board's ids is taken, whatever else is connected."""
    ports = [Port("/dev/ttyS0", "", ""), Port("/dev/ttyACM1", "0483:374b", ""), Port("/dev/ttyUSB0", "1a86:7523", "")]
    assert find_port(BOARD, lambda: ports) == "/dev/ttyACM1"


def test_two_boards_are_not_guessed_between():
    """Two matching ports: both are named, and --port is the way out."""
    ports = [Port("/dev/ttyACM0", "0483:374b", ""), Port("/dev/ttyACM1", "0483:374b", "")]
    with pytest.raises(DeviceError, match="/dev/ttyACM0, /dev/ttyACM1") as caught:
        find_port(BOARD, lambda: ports)
    assert "--port" in caught.value.next_step


def test_no_board_is_reported():
    """No matching port: the message says which id is wanted and what is here."""
    with pytest.raises(DeviceError, match="0483:374b; ports here: /dev/ttyS0"):
        find_port(BOARD, lambda: [Port("/dev/ttyS0", "", "")])
    assert isinstance(serial_transport.list_ports(), list)


def test_a_probe_drive_is_found_and_written(tmp_path):
    """The drive with the probe's files takes the image; two such drives are not guessed between."""
    for name in ("NOD_F746ZG", "STICK", "NOD_F412ZG"):
        (tmp_path / name).mkdir()
    drive = tmp_path / "NOD_F746ZG"
    for name in ("DETAILS.TXT", "MBED.HTM"):
        (drive / name).write_text("")
    assert flash.find_drive(tmp_path.iterdir()) == drive
    flash.copy_to_drive(b"image", drive)
    assert (drive / "firmware.bin").read_bytes() == b"image"
    (drive / "FAIL.TXT").write_text("The interface firmware ran into an error")
    with pytest.raises(DeviceError, match="ran into an error"):
        flash.copy_to_drive(b"image", drive)
    for name in ("DETAILS.TXT", "MBED.HTM"):
        (tmp_path / "NOD_F412ZG" / name).write_text("")
    with pytest.raises(DeviceError, match="2 boards show a USB drive"):
        flash.find_drive(tmp_path.iterdir())
    with pytest.raises(DeviceError, match="cannot copy"):
        flash.copy_to_drive(b"image", tmp_path / "gone")


def test_openocd_is_called_and_its_failure_is_shown(tmp_path, monkeypatch):
    """OpenOCD gets the board's family and the ELF; when it fails, the end of its output is in the message."""
    fake = tmp_path / "openocd"
    fake.write_text('#!/bin/sh\necho "$@"\necho "Error: open failed" >&2\nexit 1\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    command = flash.openocd_command(Path("firmware.elf"), BOARD)
    assert command is not None
    assert "target/stm32f7x.cfg" in command
    with pytest.raises(DeviceError, match="open failed"):
        flash.run_openocd(command)


def test_without_a_way_to_the_board_flash_says_what_to_install(monkeypatch, tmp_path):
    """No drive and no OpenOCD: the message names both, and PlatformIO."""
    monkeypatch.setattr(flash, "mounted_drives", lambda: [tmp_path])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match="no way to flash 'nucleo-f746'") as caught:
        flash.program(Path("firmware.elf"), BOARD)
    assert "openocd" in caught.value.next_step


def test_flash_checks_who_answers(board):
    """After programming, another model or another board at the port is an error."""
    from tinykd.commands.flash import check_answer

    with pytest.raises(DeviceError, match="another model"):
        check_answer(BOARD, board.path, "ab" * 32)
    with pytest.raises(DeviceError, match="built for 'fake'"):
        check_answer(BOARD, board.path, "00" * 32)


@pytest.mark.hardware
@pytest.mark.skipif("TINYKD_PORT" not in os.environ, reason="needs a board: TINYKD_BOARD and TINYKD_PORT")
def test_a_real_board_answers():
    """A connected board with tinykd's firmware says HELLO and echoes."""
    board = load_board(os.environ["TINYKD_BOARD"])
    transport = open_serial(board, os.environ["TINYKD_PORT"])
    session = Session(transport, baud=board.baud)
    assert session.hello().board == board.name
    assert session.echo(bytes(range(256))) == bytes(range(256))
    transport.close()


def test_a_terminal_error_counts_as_a_lost_port(board, monkeypatch):
    """pyserial lets termios.error through when a port vanishes while it waits for the last byte to leave."""
    termios = pytest.importorskip("termios")

    def fail():
        raise termios.error(errno.EIO, "Input/output error")

    transport = SerialTransport(board.path, 115200)
    monkeypatch.setattr(transport._port, "flush", fail)
    with pytest.raises(DeviceError, match="connection to the board was lost"):
        transport.write(b"x")
    transport.close()
