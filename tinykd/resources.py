"""Where the files that are not Python live: `boards/` and `firmware/`, in a checkout or in an installed wheel."""

from __future__ import annotations

from pathlib import Path

from tinykd.errors import InternalError

_PACKAGE = Path(__file__).resolve().parent


def find_resource(name: str) -> Path:
    """Return the folder `name` ("boards" or "firmware").

    The wheel carries it below the package (`tinykd/_resources/`); a checkout has it beside the package.

    Raises:
        InternalError: it is in neither place (a broken installation).
    """
    for folder in (_PACKAGE / "_resources" / name, _PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise InternalError(f"the folder '{name}' is missing from this installation of tinykd", "Reinstall tinykd.")
