"""The tree of errors."""

from __future__ import annotations

from tinykd import errors


def all_errors() -> list[type[errors.TinykdError]]:
    """Return the tree below TinykdError."""
    found = [errors.TinykdError]
    for kind in found:
        found += kind.__subclasses__()
    return found


def test_every_branch_has_an_exit_code_of_its_own() -> None:
    """The first level below TinykdError covers 1 to 7, each once; deeper classes inherit theirs."""
    branches = errors.TinykdError.__subclasses__()
    assert sorted(kind.exit_code for kind in branches) == [1, 2, 3, 4, 5, 6, 7]
    for kind in all_errors():
        branch = next((base for base in branches if issubclass(kind, base)), None)
        assert branch is None or kind.exit_code == branch.exit_code


def test_text_is_message_then_next_step() -> None:
    """str() of an error is what a log should hold; without a next step there is no empty line."""
    assert str(errors.ConfigError("bad key", "Use another.")) == "bad key\nUse another."
    assert str(errors.ConfigError("bad key")) == "bad key"


def test_nearest_suggests_close_names_only() -> None:
    """A typing error is answered, a different word is not."""
    assert errors.nearest("nucleo-f764", ["nucleo-f746", "pico"]) == " Did you mean 'nucleo-f746'?"
    assert errors.nearest("zebra", ["nucleo-f746", "pico"]) == ""
    assert errors.nearest("zebra", []) == ""
