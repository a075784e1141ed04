"""`tinykd flash`: put the firmware on a real board, and make sure that it answers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tinykd.commands.output import board_option, goal_option, json_option, out_option, print_json

if TYPE_CHECKING:
    from tinykd.board import Board
    from tinykd.run.protocol import Identity

_RESTART_S = 2.0  # a probe restarts the board, and its own serial port, after programming


@click.command("flash")
@click.argument("target")
@board_option
@goal_option
@click.option("--port", metavar="P", help="Serial port; without it the only one with the board's USB ids.")
@click.option("--drive", type=click.Path(exists=True, file_okay=False), help="The probe's USB drive.")
@click.option("--engine", type=click.Choice(["tinykd", "tflm"]), default="tinykd", show_default=True)
@out_option
@json_option
def command(
    target: str,
    board: str,
    optimize_for: str | None,
    port: str | None,
    drive: str | None,
    engine: str,
    out: str | None,
    as_json: bool,
) -> None:
    """Flash TARGET (a run folder or MODEL.tflite) to a connected board and check that it answers with this model.

    By copying to the probe's USB drive where one is mounted, else through OpenOCD. Exit code 6 when no board is
    connected, when there are several, or when another firmware answers.
    """
    from tinykd.board import load_board
    from tinykd.commands.pipeline import ensure_build, goal_of
    from tinykd.commands.target import resolve_target
    from tinykd.run.flash import program
    from tinykd.run.transport.serial import find_port

    the_board = load_board(board)
    resolved = resolve_target(target, out)
    path = port or find_port(the_board)  # before the build: with no board there is nothing to wait for
    built = ensure_build(resolved, the_board, engine, optimize_for=goal_of(resolved, optimize_for))
    how = program(built.elf, the_board, Path(drive) if drive else None)
    time.sleep(_RESTART_S)
    identity = check_answer(the_board, path, resolved.sha256())
    result = {
        "board": identity.board,
        "engine": identity.engine,
        "model_sha256": identity.model_sha256,
        "port": path,
        "method": how,
        "flash_bytes": built.flash_bytes,
    }
    if as_json:
        print_json(result)
        return
    click.echo(f"{resolved.name} is on {path}: {how}, {built.flash_bytes:,} B; it answers with this model.")
    if not the_board.run_on_silicon:
        click.echo(f"Note: '{the_board.name}' was never run on silicon by tinykd's authors; please tell how it went.")


def check_answer(board: Board, port: str, model_sha256: str) -> Identity:
    """Return who answers on a port.

    Raises:
        DeviceError: nobody, another board, or another model than `model_sha256`.
    """
    from tinykd.errors import DeviceError
    from tinykd.run.session import open_session
    from tinykd.run.transport import open_serial

    with open_session(open_serial(board, port), baud=board.baud) as session:
        session.require_model(model_sha256)
        identity = session.identity
    assert identity is not None  # open_session has said HELLO
    if identity.board != board.name:
        raise DeviceError(
            f"{port}: the firmware that answers was built for '{identity.board}', not for '{board.name}'",
            "Choose the board that is connected with --board.",
        )
    return identity
