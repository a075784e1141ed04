"""The command line: quick to answer, one message and one exit code for each fault, stdout for results only."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import types

import click
import pytest

from tinykd import __version__, cli, errors

HEAVY = ("torch", "numpy", "pydantic", "rich", "yaml", "onnx", "tflite", "jinja2")


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run this Python with more environment variables and return what it did."""
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
        check=False,
    )


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """Return a function that makes `tinykd plan` run a given body and returns (exit code, stdout, stderr)."""

    def run(body, *arguments: str) -> tuple[int, str, str]:
        module = types.ModuleType("tinykd_test_verb")
        module.command = click.Command(
            "plan",
            callback=lambda **_: body(),
            params=[click.Option(["--json", "as_json"], is_flag=True), click.Argument(["target"], required=False)],
        )
        monkeypatch.setitem(sys.modules, "tinykd_test_verb", module)
        monkeypatch.setitem(cli.COMMANDS, "plan", ("tinykd_test_verb", "test"))
        with pytest.raises(SystemExit) as exit_info:
            cli.main(["plan", *arguments])
        captured = capfd.readouterr()
        return exit_info.value.code, captured.out, captured.err

    return run


def fail_with(error: BaseException):
    """Return a body that raises `error`."""

    def body() -> None:
        raise error

    return body


def test_help_imports_nothing_heavy() -> None:
    """`tinykd --help` loads click and the standard library only."""
    code = (
        "import sys\n"
        "from tinykd.cli import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit as stop:\n    assert stop.code == 0, stop.code\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "loaded += [name for name in sys.modules if name.startswith('tinykd.commands.')]\n"
        "assert not loaded, loaded\n"
    )
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr


def test_help_answers_in_less_than_300_ms() -> None:
    """The processor time of the best of five calls, start of Python included, is below 0.3 s."""
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run_python("-m", "tinykd", "--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 0.3, times


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_verb_has_help_and_needs_no_torch_for_it(name: str) -> None:
    """The help of each verb states its purpose in the first line after the usage, without importing torch."""
    code = (
        "import sys\n"
        "from tinykd.cli import main\n"
        f"try:\n    main([{name!r}, '--help'])\n"
        "except SystemExit as stop:\n    assert stop.code == 0, stop.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Usage: tinykd {name}")
    assert len(done.stdout.splitlines()[2].strip()) > 10


@pytest.mark.parametrize("name", [name for name in cli.COMMANDS if name not in ("flash", "completion")])
def test_every_verb_with_a_result_offers_json(name: str) -> None:
    """Scripts can ask each verb that has a result for one JSON object."""
    done = run_python("-m", "tinykd", name, "--help")
    assert "--json" in done.stdout


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InternalError("it broke"), 1),
        (errors.ConfigError("it broke"), 2),
        (errors.DataError("it broke"), 2),
        (errors.ArtifactError("it broke"), 2),
        (errors.DoesNotFitError("it broke"), 3),
        (errors.UnsupportedModelError("it broke"), 4),
        (errors.InvalidModelError("it broke"), 4),
        (errors.ToolchainError("it broke"), 5),
        (errors.DeviceError("it broke"), 6),
        (errors.ParityError("it broke"), 7),
    ],
)
def test_each_branch_of_errors_has_its_exit_code(verb, error: errors.TinykdError, code: int) -> None:
    """The exit code says whose fault it is; the message is on stderr and stdout stays empty."""
    assert verb(fail_with(error)) == (code, "", "plan: it broke\n")


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_next_step_is_indented_below_the_message(verb, arguments: tuple[str, ...]) -> None:
    """A message may have several lines; the next step follows, and none of it goes to stdout, with --json neither."""
    code, out, err = verb(fail_with(errors.DoesNotFitError("too big\n  by 3 B", "Try less.\nOr more.")), *arguments)
    assert (code, out) == (3, "")
    assert err == "plan: too big\n  by 3 B\n      Try less.\n      Or more.\n"


def test_a_verb_that_names_itself_is_not_named_twice(verb) -> None:
    """A message that begins with the verb keeps that one."""
    assert verb(fail_with(errors.DoesNotFitError("plan: arena needs 3 B")))[2] == "plan: arena needs 3 B\n"


@pytest.mark.parametrize("arguments", [(), ("--debug",)])
def test_traceback_only_with_debug(verb, arguments: tuple[str, ...]) -> None:
    """--debug is accepted after the verb and adds the traceback; without it there is none."""
    _, _, err = verb(fail_with(errors.DeviceError("no answer")), *arguments)
    assert ("Traceback" in err) == bool(arguments)
    assert err.endswith("plan: no answer\n")


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 1, "out of memory"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/x"), 2, "the disk is full on runs/x"),
        (PermissionError(errno.EACCES, "Permission denied", "runs/x"), 2, "not permitted on runs/x"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a.yaml"), 2, "no such file on a.yaml"),
        (ModuleNotFoundError("No module named 'torch'", name="torch.nn"), 5, "pip install 'tinykd[train]'"),
        (ModuleNotFoundError("No module named 'unicorn'", name="unicorn"), 5, "pip install 'tinykd[sim]'"),
        (ModuleNotFoundError("No module named 'tinykd.x'", name="tinykd.x"), 1, "Reinstall tinykd"),
        (ZeroDivisionError("division by zero"), 1, "internal error: ZeroDivisionError: division by zero"),
    ],
)
def test_what_nobody_explained_still_gets_one_message(verb, error: BaseException, code: int, text: str) -> None:
    """Errors from outside the tree become a message with the exit code of their kind, and no traceback."""
    found, out, err = verb(fail_with(error))
    assert (found, out) == (code, "")
    # click ends the line with the ^C of the terminal first.
    assert err.lstrip("\n").startswith("plan: ") and text in err and "Traceback" not in err


def test_a_command_can_choose_its_exit_code(verb) -> None:
    """`ctx.exit(n)` and `SystemExit(n)` inside a verb reach the shell."""
    assert verb(lambda: click.get_current_context().exit(4))[0] == 4
    assert verb(fail_with(SystemExit(143)))[0] == 143


def test_success_exits_with_0(verb) -> None:
    """What a verb prints reaches stdout, and nothing else does."""
    assert verb(lambda: click.echo("{}"), "--json") == (0, "{}\n", "")


def test_an_unknown_verb_suggests_the_nearest() -> None:
    """A typing error is answered with the verb that was meant, and exit code 2."""
    done = run_python("-m", "tinykd", "trian")
    assert done.returncode == 2 and done.stdout == ""
    assert "unknown command 'trian'. Did you mean 'train'?" in done.stderr


def test_an_unknown_option_points_to_the_help_of_its_verb() -> None:
    """Usage errors carry exit code 2 and name the help to read."""
    done = run_python("-m", "tinykd", "list", "boards", "--jsn")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("list: No such option") and "tinykd list --help" in done.stderr


def test_no_verb_shows_the_help() -> None:
    """`tinykd` alone prints the help on stderr with exit code 2, so that a script notices."""
    done = run_python("-m", "tinykd")
    assert done.returncode == 2 and done.stdout == "" and "Usage: tinykd" in done.stderr


def test_version() -> None:
    """--version prints name and version on stdout."""
    done = run_python("-m", "tinykd", "--version")
    assert (done.returncode, done.stdout) == (0, f"tinykd {__version__}\n")


def test_a_reader_that_goes_away_is_no_error() -> None:
    """`tinykd list models | head -1` ends without a message."""
    done = subprocess.run(
        f"'{sys.executable}' -m tinykd list models | head -n 1; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable=shutil.which("bash"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0 and done.stderr == ""


@pytest.mark.parametrize(("words", "offered"), [("tinykd pl", "plan"), ("tinykd list bo", "boards")])
def test_tab_completion_offers_what_fits(words: str, offered: str) -> None:
    """The shell's question is answered with verbs and with a verb's own choices."""
    count = str(len(words.split()) - 1)
    done = run_python("-m", "tinykd", _TINYKD_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=count)
    assert done.returncode == 0, done.stderr
    assert offered in [line.partition(",")[2] for line in done.stdout.splitlines()]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_code_is_valid(shell: str) -> None:
    """`tinykd completion SHELL` prints code that the shell, where it is installed, parses."""
    done = run_python("-m", "tinykd", "completion", shell)
    assert done.returncode == 0 and "_TINYKD_COMPLETE" in done.stdout
    program = shutil.which(shell)
    if program is not None:
        parsed = subprocess.run([program, "-n", "/dev/stdin"], input=done.stdout, text=True, timeout=30, check=False)
        assert parsed.returncode == 0


@pytest.mark.parametrize("what", ["boards", "models", "methods", "datasets", "recipes"])
def test_list_shows_the_same_names_to_people_and_to_scripts(what: str) -> None:
    """Every name of the JSON object stands unbroken in the table, and there is at least one."""
    rows = json.loads(run_python("-m", "tinykd", "list", what, "--json").stdout)[what]
    table = run_python("-m", "tinykd", "list", what, COLUMNS="80").stdout
    names = [row["name"] for row in rows]
    assert names and len(set(names)) == len(names)
    assert [name for name in names if name not in table] == []


def test_list_needs_no_torch() -> None:
    """All five lists come from tables that import without torch."""
    code = (
        "import sys\n"
        "from tinykd.commands.list import LISTS\n"
        "[rows() for rows, _, _ in LISTS.values()]\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
