"""Building firmware: sizes, artefact, reproducibility, and what goes wrong."""

from __future__ import annotations

import errno
import importlib.util
import json
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from graphs import Builder, needs_public_models, public_models

import tinykd.build
import tinykd.build.project
from tinykd.artifact import read_manifest
from tinykd.board import list_boards, load_board
from tinykd.build import build, codegen, make_project, stack
from tinykd.build.bringup import bringup_project
from tinykd.build.size import read_sizes
from tinykd.build.toolchain import compile_project
from tinykd.errors import (
    ArtifactError,
    ConfigError,
    DoesNotFitError,
    InternalError,
    ToolchainError,
    UnsupportedModelError,
)
from tinykd.export.passes import for_engine
from tinykd.formats import tflite
from tinykd.kernels import ARMV7EM, KERNELS, engine_for
from tinykd.plan import plan_graph
from tinykd.plan.footprint import predict
from tinykd.resources import find_resource

SHA = "5a" * 32
needs_arm = pytest.mark.arm_compiler
needs_platformio = pytest.mark.skipif(
    not (importlib.util.find_spec("platformio") and importlib.util.find_spec("SCons")),
    reason="PlatformIO and SCons are not installed (tinykd[build])",
)


def _network(width=8, size=12):
    """A small network in the manner of MobileNetV2: expansion, depthwise, projection, residual, classifier."""
    builder = Builder(np.random.default_rng(3), (1, size, size, 1))
    builder.conv(width, stride=(2, 2), activation="relu6")
    start = builder.x
    builder.conv(3 * width, (1, 1), activation="relu6")
    builder.depthwise(activation="relu6")
    builder.conv(width, (1, 1))
    builder.add(start)
    builder.mean()
    builder.dense(10)
    builder.softmax()
    return builder.graph("network")


def _build(folder, graph=None, board="nucleo-f746", **options):
    graph = graph or _network()
    board = load_board(board) if isinstance(board, str) else board
    plan = plan_graph(graph, engine=engine_for(board.core))
    return build(graph, plan, board, folder, model_sha256=SHA, builder=options.pop("builder", "gcc"), **options)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The small network built for nucleo-f746 by the direct builder; tests only read it."""
    return _build(tmp_path_factory.mktemp("built") / "build")


@needs_arm
@pytest.mark.parametrize("board", list_boards())
def test_every_board_builds(board, tmp_path):
    """Every board file gives an ELF whose arena, stack and sizes are in build.json and within the budgets."""
    graph = _network()
    result = _build(tmp_path / "build", graph, board)
    record = json.loads((tmp_path / "build" / "build.json").read_text())
    sizes = read_sizes(result.elf)
    plan = plan_graph(graph, engine=engine_for(load_board(board).core))
    assert record["arena_bytes"] == sizes.arena_bytes == plan.arena_bytes
    assert record["flash_bytes"] == sizes.text_bytes + sizes.rodata_bytes + sizes.data_bytes
    assert record["sram_total_bytes"] == sizes.sram_static_bytes + record["stack_bytes_max"]
    assert 200 < record["stack_bytes_max"] < 4096
    assert record["fits"] and record["builder"] == "gcc" and record["engine"] == "tinykd"
    assert result.to_dict()["elf"] == str(tmp_path / "build" / "firmware.elf")
    assert [op["op"] for op in record["ops"]] == list(range(len(record["ops"])))
    known = {kernel.function for table in (KERNELS, ARMV7EM) for row in table.values() for kernel in row}
    assert {op["kernel"] for op in record["ops"]} <= known
    assert read_manifest(tmp_path / "build", "build").inputs["model.tflite"] == SHA


@needs_arm
def test_the_arena_stands_in_the_map_file(built):
    """The map file lists the arena as an input section of its own, with the planned size."""
    lines = built.map_file.read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if line.strip().startswith(".bss.tk_arena"))
    assert f"0x{built.arena_bytes:x}" in " ".join(lines[at : at + 2])


@needs_arm
def test_the_image_starts_with_the_vector_table(built):
    """The first words of flash are the top of the stack and the reset handler with its Thumb bit."""
    from elftools.elf.elffile import ELFFile

    board = load_board("nucleo-f746")
    with built.elf.open("rb") as file:
        image = ELFFile(file)
        vectors = image.get_section_by_name(".vectors")
        top, reset = (int.from_bytes(vectors.data()[i : i + 4], "little") for i in (0, 4))
        assert vectors["sh_addr"] == board.memory.flash.origin
        assert top == board.memory.sram.origin + board.sram_budget_bytes
        assert reset == image.get_section_by_name(".symtab").get_symbol_by_name("tk_reset_handler")[0]["st_value"]
        assert reset & 1


@needs_arm
def test_the_same_build_twice_gives_the_same_bytes(built, tmp_path):
    """Two builds in different folders give byte-identical ELF files and projects."""
    second = _build(tmp_path / "somewhere" / "else" / "build")
    assert built.elf.read_bytes() == second.elf.read_bytes()
    assert (
        read_manifest(built.folder).outputs["project/generated/tk_model.c"]
        == (read_manifest(second.folder).outputs["project/generated/tk_model.c"])
    )


@needs_arm
@needs_platformio
def test_platformio_builds_the_same_image(built, tmp_path):
    """PlatformIO with the local platform and the direct builder give the same ELF, without any download."""
    pio = _build(tmp_path / "pio", builder="pio")
    assert pio.builder == "pio" and built.builder == "gcc"
    assert pio.elf.read_bytes() == built.elf.read_bytes()
    assert (pio.flash_bytes, pio.sram_total_bytes) == (built.flash_bytes, built.sram_total_bytes)


@needs_arm
def test_an_unchanged_model_is_not_built_again(built, tmp_path):
    """The second build returns the first one's artefact; a harmed or changed one is built again."""
    folder = tmp_path / "build"
    shutil.copytree(built.folder, folder)
    stamp = (folder / "firmware.elf").stat().st_mtime_ns
    again = _build(folder)
    assert again.reused and not built.reused
    assert again.elf.stat().st_mtime_ns == stamp
    assert replace(again, reused=False, folder=built.folder) == built
    (folder / "firmware.elf").write_bytes(b"harmed")
    assert not _build(folder).reused
    assert not _build(folder, _network(width=6)).reused


@needs_arm
def test_too_little_memory_is_exit_code_3(tmp_path):
    """Flash or SRAM that cannot hold the firmware raises DoesNotFitError and leaves no folder."""
    board = load_board("nucleo-f746")
    for region, size in (("sram", 3000), ("flash", 9000)):
        memory = board.memory.model_copy(
            update={region: getattr(board.memory, region).model_copy(update={"size_bytes": size})}
        )
        with pytest.raises(DoesNotFitError) as caught:
            _build(tmp_path / "build", board=board.model_copy(update={"memory": memory}))
        assert caught.value.exit_code == 3
        assert not (tmp_path / "build").exists()


@needs_arm
def test_the_linker_keeps_room_for_the_proven_stack(built, tmp_path):
    """A board with one byte less than variables and stack together is refused; with just enough it builds."""
    board = load_board("nucleo-f746")

    def with_sram(size):
        sram = board.memory.sram.model_copy(update={"size_bytes": size})
        return board.model_copy(update={"memory": board.memory.model_copy(update={"sram": sram})})

    exact = (built.sram_total_bytes + 7) // 8 * 8
    assert _build(tmp_path / "exact", board=with_sram(exact)).fits
    with pytest.raises(DoesNotFitError):
        _build(tmp_path / "less", board=with_sram(built.sram_total_bytes - 8))


def test_a_missing_compiler_names_the_package(tmp_path, monkeypatch):
    """Without the compiler the error has exit code 5, the Debian package and `tinykd doctor`."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolchainError) as caught:
        _build(tmp_path / "build")
    assert caught.value.exit_code == 5
    assert "gcc-arm-none-eabi" in str(caught.value) and "tinykd doctor" in str(caught.value)


@needs_arm
def test_a_compiler_error_is_shown(built, tmp_path, monkeypatch):
    """The first lines of the compiler's error are in the message, and the previous artefact stays."""
    shutil.copytree(built.folder, tmp_path / "build")
    before = built.elf.read_bytes()
    honest = tinykd.build.project._firmware_files

    def broken(board):
        files = honest(board)
        return {**files, "src/broken.c": b"int broken(void) { return undeclared_name; }\n"}

    monkeypatch.setattr(tinykd.build.project, "_firmware_files", broken)
    with pytest.raises(ToolchainError, match="undeclared_name"):
        _build(tmp_path / "build")
    assert (tmp_path / "build" / "firmware.elf").read_bytes() == before


@needs_arm
def test_a_full_disk_is_an_artifact_error(tmp_path, monkeypatch):
    """When the disk is full the error says so, and nothing half-written stays."""

    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tinykd.build.shutil, "copyfile", full)
    with pytest.raises(ArtifactError, match="No space left"):
        _build(tmp_path / "build")
    assert not list(tmp_path.iterdir())


def test_unknown_names_are_refused(tmp_path):
    """Unknown engines, builders and HALs are configuration errors that suggest the nearest; tflm is not there yet."""
    with pytest.raises(ConfigError, match="Did you mean 'tinykd'"):
        _build(tmp_path / "build", engine="tinykb")
    with pytest.raises(ConfigError, match="unknown builder"):
        _build(tmp_path / "build", builder="make")
    with pytest.raises(ConfigError, match="Did you mean 'stm32f7'"):
        _build(tmp_path / "build", board=load_board("nucleo-f746").model_copy(update={"hal": "stm32f8"}))
    with pytest.raises(UnsupportedModelError, match="tflm"):
        _build(tmp_path / "build", engine="tflm")


def test_generated_c_depends_on_nothing_but_the_model():
    """Generating twice gives the same text, and no path, date or host name is in it."""
    graph = _network()
    first, second = (codegen.generate(graph, plan_graph(graph), SHA) for _ in range(2))
    assert first.files == second.files
    assert "/tmp" not in first.files["tk_model.c"]
    assert f"tk_arena[{plan_graph(graph).arena_bytes}]" in first.files["tk_model.c"]


def test_foreign_names_cannot_leave_their_comment():
    """Tensor names from a third party's file cannot end a C comment or a string."""
    graph = _network()
    evil = 'x */ int evil; /* "\n\\'
    ops = tuple(replace(op, source=evil) for op in graph.ops)
    text = codegen.generate(replace(graph, ops=ops, name=evil), plan_graph(graph), SHA).files["tk_model.c"]
    assert "*/ int evil" not in text
    assert text.count("/*") == text.count("*/")


def test_reshape_generates_no_code():
    """A RESHAPE is no op of the generated sequence, and the indices still name the graph's ops."""
    builder = Builder(np.random.default_rng(0), (1, 4, 4, 2))
    builder.conv(3)
    builder.reshape((1, 48))
    builder.dense(5)
    graph = builder.graph()
    ops = codegen.generate(graph, plan_graph(graph), SHA).ops
    assert [(op.op, op.graph_op, op.kind) for op in ops] == [(0, 0, "conv_2d"), (1, 2, "fully_connected")]


def test_the_project_has_only_the_hal_of_its_board():
    """A project for an STM32F4 carries no STM32F7 code, and its facts come from the board file."""
    graph = _network()
    project = make_project(load_board("nucleo-f412"), codegen.generate(graph, plan_graph(graph), SHA), 400)
    assert any(name.startswith("lib/tk_hal_stm32f4/") for name in project.files)
    assert not any("stm32f7" in name for name in project.files)
    assert b"#define TK_UART_BASE 1073760256U" in project.files["generated/tk_board.h"]
    assert b"tk_stack_bytes = 400;" in project.files["generated/tk_memory.ld"]
    assert b"platform = ststm32" in project.files["generated/board.ini"]


_GRAPH = """
node: { title: "a.c:tk_reset_handler" label: "tk_reset_handler\\na.c:1:1\\n8 bytes (static)\\n0 dynamic objects" }
node: { title: "tk_fault_handler" label: "tk_fault_handler\\na.c:2:1\\n16 bytes (static)\\n0 dynamic objects" }
node: { title: "f" label: "f\\na.c:3:1\\n%d bytes (%s)\\n0 dynamic objects" }
edge: { sourcename: "tk_reset_handler" targetname: "f" label: "a.c:1:2" }
edge: { sourcename: "f" targetname: "%s" label: "a.c:3:2" }
""".replace("a.c:tk_reset_handler", "tk_reset_handler")


def _bound(tmp_path, frame=40, kind="static", callee="memcpy"):
    path = tmp_path / "a.ci"
    path.write_text(_GRAPH % (frame, kind, callee))
    return stack.bound(stack.read_call_graphs([path]))


def test_the_stack_bound_adds_frames_library_and_exception(tmp_path):
    """The bound is the deepest path, the library's allowance, the exception frame and the fault handler."""
    found = _bound(tmp_path)
    assert found.total_bytes == 8 + 40 + stack.LIBRARY_ALLOWANCE_BYTES + stack.EXCEPTION_FRAME_BYTES + 16
    assert [name for name, _ in found.path][:3] == ["tk_reset_handler", "f", "memcpy"]


@pytest.mark.parametrize(
    ("callee", "words"),
    [("f", "recursion"), ("__indirect_call", "through a pointer"), ("printf", "nothing is known of 'printf'")],
)
def test_what_has_no_stack_bound_is_refused(tmp_path, callee, words):
    """Recursion, calls through pointers and unknown library functions are errors, not guesses."""
    with pytest.raises(InternalError, match=words):
        _bound(tmp_path, callee=callee)
    with pytest.raises(ToolchainError, match="unknown size"):
        _bound(tmp_path, kind="dynamic")


@needs_arm
def test_the_library_allowance_holds(built):
    """The C library's functions in the image save no more registers than the allowance covers, and call nothing."""
    dump = subprocess.run(
        ["arm-none-eabi-objdump", "-d", str(built.elf)], capture_output=True, text=True, check=True
    ).stdout
    seen = 0
    for block in dump.split("\n\n"):
        name = block.partition("<")[2].partition(">")[0]
        if name not in stack.LIBRARY_LEAVES:
            continue
        seen += 1
        saved = 0
        for line in block.splitlines():
            assert not re.search(r"\tblx?\t", line), f"{name} calls another function: {line}"
            if "\tpush" in line or "stmdb\tsp!" in line:
                saved += 4 * (line.count(",") + 1)
            if "\tsub\tsp" in line:
                saved += int(line.partition("#")[2].split()[0])
        assert saved <= stack.LIBRARY_ALLOWANCE_BYTES, name
    assert seen > 0


def _prediction_graphs():
    graphs = [_network(), _network(width=24, size=48)]
    wide = Builder(np.random.default_rng(1), (1, 16, 16, 3))
    wide.conv(16)
    wide.pool("max_pool_2d")
    wide.conv(32, stride=(2, 2))
    wide.pool("average_pool_2d", (4, 4), (4, 4))
    wide.reshape((1, 32))
    wide.dense(100, per_channel=True)
    dense = Builder(np.random.default_rng(2), (1, 640))
    for _ in range(5):
        dense.dense(64, activation="relu")
    graphs += [wide.graph(), dense.graph()]
    return graphs


@needs_arm
@pytest.mark.parametrize("index", range(4))
def test_the_prediction_holds(index, tmp_path):
    """What is predicted before a build equals what the build takes: the arena exactly, the rest within 2 %."""
    graph = _prediction_graphs()[index]
    for name in list_boards():
        _compare(graph, load_board(name), tmp_path / name)


@needs_arm
@needs_public_models
@pytest.mark.parametrize("path", public_models(), ids=lambda path: path.stem)
def test_the_prediction_holds_for_public_models(path, tmp_path):
    """The prediction holds for models that tinykd did not make."""
    graph = tflite.read(path)
    _compare(for_engine(graph), load_board("nucleo-f746"), tmp_path / "build")


def _compare(graph, board, folder):
    plan = plan_graph(graph, engine=engine_for(board.core))
    predicted = predict(graph, board, plan)
    result = build(graph, plan, board, folder, model_sha256=SHA, builder="gcc")
    assert predicted["arena_bytes"] == result.arena_bytes
    due = "run: python -m tinykd.build.footprint"
    assert predicted["flash_bytes"] == pytest.approx(result.flash_bytes, rel=0.02), due
    assert predicted["sram_bytes"] == pytest.approx(result.sram_total_bytes, rel=0.02), due
    assert predicted["stack_bytes"] == pytest.approx(result.stack_bytes_max, rel=0.1), due
    assert predicted["model_bytes"] == pytest.approx(result.model_bytes, abs=16)
    shutil.rmtree(folder)


@needs_arm
@needs_platformio
def test_the_firmware_folder_is_a_platformio_project(tmp_path):
    """A checkout's firmware/ with the bring-up files builds for a board although all HALs stand in it."""
    source = find_resource("firmware")
    shutil.copytree(source, tmp_path / "firmware", ignore=shutil.ignore_patterns("generated", ".pio"))
    project = bringup_project("nucleo-f412")
    for name, data in project.files.items():
        if name.startswith("generated/"):
            path = tmp_path / "firmware" / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
    compiled = compile_project(project, tmp_path / "firmware", tmp_path / "work", "pio")
    assert read_sizes(compiled.elf).arena_bytes == 32
