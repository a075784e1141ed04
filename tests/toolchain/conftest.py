"""What the tests of this folder need: a C compiler for the host, or the Arm compiler."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


def pytest_collection_modifyitems(items):
    """Skip, with the reason, what the machine has no compiler for."""
    host = shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")
    arm = shutil.which("arm-none-eabi-gcc")
    for item in items:
        if "toolchain" not in Path(item.fspath).parts:
            continue
        if item.get_closest_marker("host_compiler") and not host:
            item.add_marker(pytest.mark.skip(reason="no C compiler for this machine (gcc, clang or cc) on PATH"))
        if item.get_closest_marker("arm_compiler") and not arm:
            item.add_marker(pytest.mark.skip(reason="arm-none-eabi-gcc is not on PATH"))


def pytest_configure(config):
    """Declare the markers of this folder."""
    config.addinivalue_line("markers", "host_compiler: needs a C compiler for this machine")
    config.addinivalue_line("markers", "arm_compiler: needs arm-none-eabi-gcc")


@pytest.fixture(scope="session")
def kernels(tmp_path_factory):
    """A function that returns the folder of a core's kernels, compiled when first asked for."""
    from tinykd.build.bare import build_kernels

    folder = tmp_path_factory.mktemp("kernels")
    return lambda core: build_kernels(core, folder / core)
