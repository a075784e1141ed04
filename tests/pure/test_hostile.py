"""Broken files: each ends in a graph or in an error of ours, soon, within 1 GB, and never ends the interpreter."""

from functools import partial

import pytest
from graphs import needs_public_models, public_models
from hostile import onnx_bases, readers, traps, watch
from hostile.mutate import MUTATIONS, mutate, tflite_base
from tflite_cases import CASES

from tinykd.formats.tflite import writer as tflite_writer


def op_bases():
    """One small file of each op kind."""
    return [tflite_base(name, tflite_writer.write(graph)) for name, graph in CASES.items()]


def run(read, bases, count, **limits):
    """The endings of `count` mutations, and the child's peak memory in bytes."""
    *found, peak = watch.endings(read, bases, range(count), **limits)
    assert [ending.seed for ending in found] == list(range(count))
    return found, peak


def expect_good(read, bases, count):
    """Assert that every mutation ends well, and that some are refused and some are not."""
    found, peak = run(read, bases, count, prepare=partial(read, bases[0].data))
    assert not [ending for ending in found if not ending.is_good]
    assert {"graph", "InvalidModelError"} <= {ending.outcome for ending in found}
    assert peak < watch.MEMORY_BYTES


def test_broken_files_of_every_op_end_well():
    """500 mutations of files with one op each: refused, or a graph that is written and read back the same."""
    expect_good(readers.read_tflite, op_bases(), 500)


def test_what_still_reads_can_be_planned_and_run():
    """A graph that comes out of a broken file neither upsets the planner nor the integer reference."""
    expect_good(readers.plan_and_run_tflite, op_bases(), 500)


@needs_public_models
def test_broken_public_models_end_well():
    """500 mutations of public models: refused, or a graph that is written and read back the same."""
    expect_good(readers.read_tflite, [tflite_base(path.stem, path.read_bytes()) for path in public_models()], 500)


def test_broken_onnx_models_end_well():
    """500 mutations of ONNX models, most of them in single fields: refused, or a graph."""
    expect_good(readers.read_onnx, onnx_bases.bases(), 500)


def test_mutations_repeat_and_differ():
    """A seed gives the same broken file each time; over some seeds every mutation turns up and changes the file."""
    base = op_bases()[0]
    made = [mutate(base, seed) for seed in range(300)]
    assert made == [mutate(base, seed) for seed in range(300)]
    assert {kind for kind, _ in made} == set(MUTATIONS)
    assert sum(data != base.data for _, data in made) > 290


@pytest.mark.parametrize(
    ("trap", "outcome"),
    [(traps.hang, "hang"), (traps.crash, "crash"), (traps.hoard, "out of memory"), (traps.stumble, "KeyError")],
)
def test_the_watch_notices(trap, outcome):
    """A reader that hangs, ends the interpreter, takes too much memory or raises anything is reported, file by file."""
    found, _ = run(trap, op_bases()[:2], 2, seconds=0.3)
    assert [ending.outcome for ending in found] == [outcome, outcome]
    assert not any(ending.is_good for ending in found)


def test_the_watch_measures_memory():
    """What a file takes beyond the interpreter shows in the peak."""
    _, idle = run(traps.accept, op_bases()[:1], 1)
    _, busy = run(traps.swell, op_bases()[:1], 1)
    assert busy - idle > 200 << 20
