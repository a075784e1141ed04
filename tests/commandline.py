"""The real command line in a process of its own, for tests."""

from __future__ import annotations

import os
import subprocess
import sys


def tinykd(cwd, *arguments, timeout=120, **environment):
    """Run the command line in `cwd` and return (exit code, stdout, stderr)."""
    done = subprocess.run(
        [sys.executable, "-m", "tinykd", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment},
    )
    return done.returncode, done.stdout, done.stderr
