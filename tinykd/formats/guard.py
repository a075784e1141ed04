"""One guard for every reader: whatever a broken file makes Python or NumPy raise becomes an InvalidModelError."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager

from tinykd.errors import InvalidModelError, TinykdError

_BREAKAGE = (
    struct.error,
    ArithmeticError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    MemoryError,
    RecursionError,
)


@contextmanager
def broken_file(name: str) -> Iterator[None]:
    """Turn what a corrupt or truncated file makes the code inside raise into InvalidModelError.

    Args:
        name: how the message names the file.

    Raises:
        InvalidModelError: instead of the exceptions of Python and NumPy. Errors of ours pass.
    """
    try:
        yield
    except TinykdError:
        raise
    except _BREAKAGE as error:
        raise InvalidModelError(
            f"'{name}' is corrupt or truncated: {type(error).__name__}: {error}",
            "Compare its size and hash with where it came from.",
        ) from error
