"""Measured choices between kernels: how they are kept, whose count, and that a wrong file is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tinykd.commands.tune import Measured, keep_choices, winners
from tinykd.errors import ConfigError
from tinykd.kernels import ARMV7EM, CYCLES_PER_BYTE, engine_for, tuning

WIDENED, PACKED = "widened", "packed"


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Two files of choices in place of the committed one and of the user's."""
    monkeypatch.setattr(tuning, "COMMITTED", tmp_path / "committed.toml")
    monkeypatch.setenv(tuning.TUNED_VARIABLE, str(tmp_path / "own.toml"))
    tuning._merged.cache_clear()
    yield tuning.COMMITTED, tmp_path / "own.toml"
    tuning._merged.cache_clear()


def measured(variant, instructions, constant_bytes, estimated, key="conv_2d 1x8x8x4"):
    """One kernel's figures; its estimate of bytes is right."""
    return Measured(
        key, "conv_2d", 1, f"tk_{variant}", variant, instructions, constant_bytes, estimated, constant_bytes
    )


def test_the_users_choices_come_before_the_committed_ones(files):
    """engine_for reads both files: what both name is the user's; portable cores have no choices."""
    committed, own = files
    tuning.write_choices(committed, {"balanced": {"a": WIDENED, "b": WIDENED}, "speed": {"a": PACKED}})
    tuning.write_choices(own, {"balanced": {"b": PACKED, "c": PACKED}})
    assert dict(engine_for("cortex-m7").choices) == {"a": WIDENED, "b": PACKED, "c": PACKED}
    assert dict(engine_for("cortex-m4", "speed").choices) == {"a": PACKED}
    assert dict(engine_for("cortex-m4", "size").choices) == {}
    assert dict(engine_for("cortex-m0plus").choices) == {}


def test_a_changed_file_counts_and_an_empty_name_means_none(files, monkeypatch):
    """What was read once is read again when the file changed; without a user's file its digest is None."""
    _, own = files
    assert (tuning.user_digest(), dict(engine_for("cortex-m7").choices)) == (None, {})
    tuning.write_choices(own, {"balanced": {"a": WIDENED}})
    first = tuning.user_digest()
    assert engine_for("cortex-m7").choices["a"] == WIDENED
    stamp = own.stat().st_mtime_ns
    tuning.write_choices(own, {"balanced": {"a": PACKED}})
    os.utime(own, ns=(stamp + 1, stamp + 1))
    assert engine_for("cortex-m7").choices["a"] == PACKED
    assert tuning.user_digest() != first
    monkeypatch.setenv(tuning.TUNED_VARIABLE, "")
    assert (tuning.user_file(), tuning.user_digest(), dict(engine_for("cortex-m7").choices)) == (None, None, {})


def test_the_users_file_is_in_the_cache_folder_by_default(monkeypatch, tmp_path):
    """Without the variable the file stands where tinykd caches."""
    monkeypatch.delenv(tuning.TUNED_VARIABLE, raising=False)
    monkeypatch.setenv("TINYKD_CACHE", str(tmp_path))
    assert tuning.user_file() == tmp_path / "tuned.toml"


@pytest.mark.parametrize("text", ["[balanced\n", "balanced = 3\n", "[balanced]\na = 3\n", "\udcff"])
def test_a_file_that_is_no_table_of_choices_is_refused(files, text):
    """Damage is an error that names the file and the mend, not a silent other choice."""
    _, own = files
    own.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=r"own\.toml") as caught:
        engine_for("cortex-m7")
    assert "tinykd tune" in caught.value.next_step


def test_the_winner_takes_least_at_the_goals_price(files):
    """Instructions alone for speed, bytes alone for size, both for balanced; ties go to what the estimate takes."""
    rows = [measured(WIDENED, 1000, 300, 900), measured(PACKED, 4000, 150, 5000)]
    assert {goal: winners(rows, goal)["conv_2d 1x8x8x4"][0].variant for goal in CYCLES_PER_BYTE} == {
        "speed": WIDENED,
        "balanced": WIDENED,  # 1000 + 16 * 300 < 4000 + 16 * 150
        "size": PACKED,
    }
    assert winners(rows[:1], "speed") == {}
    even = [measured(WIDENED, 1000, 8, 900), measured(PACKED, 1000, 8, 800)]
    assert winners(even, "speed")["conv_2d 1x8x8x4"][0].variant == PACKED


def test_only_what_the_estimate_got_wrong_is_kept_beside_other_models_choices(files):
    """A choice is written where measurement and estimate disagree, and goes when they agree again."""
    _, own = files
    tuning.write_choices(own, {"speed": {"other op": PACKED}})
    wrong = [measured(WIDENED, 5000, 300, 900), measured(PACKED, 4000, 150, 5000)]
    right = [measured(WIDENED, 1000, 300, 900), measured(PACKED, 4000, 150, 5000)]
    assert keep_choices(wrong, own)["speed"] == {"conv_2d 1x8x8x4": PACKED}
    assert tuning.read_choices(own)["speed"] == {"other op": PACKED, "conv_2d 1x8x8x4": PACKED}
    assert keep_choices(right, own)["speed"] == {}
    assert tuning.read_choices(own) == {"speed": {"other op": PACKED}}


def test_an_estimate_is_off_beyond_ten_percent_or_a_single_byte():
    """Instructions may be 10 % off, bytes not at all; without an estimate nothing is off."""
    assert not measured(WIDENED, 1000, 8, 1090).is_off
    assert measured(WIDENED, 1000, 8, 1110).is_off
    assert measured(WIDENED, 1000, 8, 890).is_off
    assert Measured("a", "conv_2d", 1, "tk", "", 1000, 8, 1000, 7).is_off
    assert not Measured("a", "conv_2d", 1, "tk", "", 1000, 8, None, None).is_off


def test_committed_choices_name_variants_that_exist():
    """Every committed choice is a variant of a kernel for that kind of op, for a known goal."""
    for goal, table in tuning.read_choices(Path(tuning.COMMITTED)).items():
        assert goal in CYCLES_PER_BYTE
        for key, variant in table.items():
            assert variant in {kernel.variant for kernel in ARMV7EM[key.split()[0]]}, key
