"""bin/deliver and bin/quarantine: an MTA hears 0, 75, 99 or 100, one line at most, and nothing on standard error.

Most tests put a script of their own in Python's place: what matters is how the launcher treats what it cannot foresee.
"""

import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import strace
from installed import (
    CHECKOUT,
    install_once,  # noqa: F401 - the fixture `installed`
    make_install,
)

from deliver.__main__ import COMMANDS

TEMPORARY = b"4.3.0 Temporary failure (#4.3.0)\n"
MESSAGE = b"Subject: x\n\nbody\n"

Launcher = Callable[..., Path]


@pytest.fixture(params=[["dash"], ["bash", "--posix"]], ids=lambda words: words[0])
def shell(request: pytest.FixtureRequest) -> Sequence[str]:
    """The shells that are /bin/sh somewhere."""
    words: Sequence[str] = request.param
    if not shutil.which(words[0]):
        pytest.skip(f"no {words[0]} here")
    return words


@pytest.fixture
def launcher(tmp_path: Path) -> Launcher:
    """``launcher(script, name="deliver", filled=True)``: a launcher whose Python is that script; its path."""

    def build(script: str, name: str = "deliver", filled: bool = True) -> Path:
        home = tmp_path / "home of it"
        (home / "bin").mkdir(parents=True)
        python = home / "bin" / "python"
        python.write_text(script if script.startswith("#!") else f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
        path = home / "bin" / name
        if filled:
            path = tmp_path / name
        text = (CHECKOUT / "bin" / name).read_text()
        assert text.count("\nhome=\n") == 1
        path.write_text(text.replace("\nhome=\n", f"\nhome='{home}'\n") if filled else text)
        path.chmod(0o755)
        return path

    return build


def run(*words: str | Path, stdin: bytes = MESSAGE, **more: object) -> tuple[int, bytes, bytes]:
    """Exit code, standard output, standard error."""
    done = subprocess.run(words, input=stdin, capture_output=True, timeout=60, check=False, **more)  # type: ignore[call-overload]
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("code", [0, 75, 99, 100])
def test_codes_that_mtas_understand_pass(launcher: Launcher, shell: Sequence[str], code: int) -> None:
    path = launcher(f"echo '5.2.2 Mailbox is full (#5.2.2)'; echo noise >&2; exit {code}")
    assert run(*shell, path) == (code, b"5.2.2 Mailbox is full (#5.2.2)\n", b"")


@pytest.mark.parametrize("code", [1, 2, 64, 65, 67, 70, 73, 77, 78, 98, 101, 111, 112, 120, 126, 127, 137, 255])
def test_any_other_code_is_try_again(launcher: Launcher, shell: Sequence[str], code: int) -> None:
    path = launcher(f"echo noise >&2; exit {code}")
    assert run(*shell, path) == (75, TEMPORARY, b"")


@pytest.mark.parametrize("name", ["KILL", "SEGV", "ABRT", "TERM", "HUP", "INT", "PIPE", "XCPU"])
def test_killed_python_is_try_again(launcher: Launcher, shell: Sequence[str], name: str) -> None:
    path = launcher(f"kill -{name} $$")
    assert run(*shell, path) == (75, TEMPORARY, b"")


def test_missing_interpreter_is_try_again(launcher: Launcher, shell: Sequence[str]) -> None:
    path = launcher("exit 0")
    python = path.parent / "home of it" / "bin" / "python"
    python.chmod(0o644)
    assert run(*shell, path) == (75, TEMPORARY, b"")
    python.unlink()
    assert run(*shell, path) == (75, TEMPORARY, b"")
    # A virtual environment after its distribution's upgrade.
    python.symlink_to("/usr/bin/python3.0")
    assert run(*shell, path) == (75, TEMPORARY, b"")


def feed(process: subprocess.Popen[bytes], message: bytes) -> bytes:
    """Write the message, all of it, as an MTA that minds EPIPE does; what the process then says on standard output."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(message)  # raises BrokenPipeError
    process.stdin.close()
    return process.stdout.read()


def test_message_is_read_to_its_end(launcher: Launcher, shell: Sequence[str]) -> None:
    # More than a pipe holds. The environment's PATH is no help.
    words = [shutil.which(shell[0]) or "", *shell[1:], launcher("exit 1")]
    environment = {"PATH": "/nowhere"}
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert feed(process, b"x" * 300_000) == TEMPORARY
        assert process.wait(60) == 75


def test_shell_that_cannot_fork_is_try_again(installed: Path) -> None:
    # dash ends with 2 where fork fails. bash, which tries for 15 s, is left out.
    def no_processes() -> None:
        resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))

    words = [shutil.which("dash") or "sh", installed / "bin" / "deliver"]
    nobody = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    with subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=no_processes,
        cwd="/",
        **nobody,  # type: ignore[call-overload]
    ) as process:
        assert feed(process, b"line\n" * 60_000) == TEMPORARY
        assert process.stderr.read() == b""
        assert process.wait(60) == 75


@pytest.mark.parametrize("how", ["blocked", "ignored"])
def test_sigchld_as_qmail_leaves_it(launcher: Launcher, shell: Sequence[str], how: str) -> None:
    def prepare() -> None:
        if how == "blocked":
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        else:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    path = launcher("/bin/cat; exit 100")
    assert run(*shell, path, preexec_fn=prepare) == (100, MESSAGE, b"")
    path.with_name("home of it").joinpath("bin", "python").write_text("#!/bin/sh\nexit 3\n")
    assert run(*shell, path, preexec_fn=prepare) == (75, TEMPORARY, b"")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGALRM, signal.SIGTERM])
def test_signal_waits_for_the_answer(launcher: Launcher, shell: Sequence[str], number: signal.Signals) -> None:
    # The message may be stored by now: the child's answer is the truth.
    path = launcher("echo ready; read -r line; exit 99")
    with subprocess.Popen([*shell, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        process.stdin.write(b"go on\n")
        process.stdin.close()
        assert process.wait(60) == 99


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_child_has_its_signals_at_their_defaults(launcher: Launcher, shell: Sequence[str], number: int) -> None:
    # SigIgn and SigCgt of proc(5) are masks: bit N-1 for signal N.
    path = launcher("while read -r key value; do case $key in SigIgn:) echo $value; esac; done </proc/self/status")
    code, output, _ = run(*shell, path)
    assert code == 0
    assert not int(output, 16) & 1 << (number - 1)


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2)], ids=str)
def test_closed_descriptors(launcher: Launcher, shell: Sequence[str], closed: tuple[int, ...]) -> None:
    def prepare() -> None:
        for descriptor in closed:
            os.close(descriptor)

    # Standard error is ours in any case, and no file of the shell's may take the place of another.
    path = launcher("""for fd in 0 1; do [ -e /proc/self/fd/$fd ] && echo $fd is open; done; exit 100""")
    words = "".join(f"{fd} is open\n" for fd in (0, 1) if fd not in closed).encode() if 1 not in closed else b""
    assert run(*shell, path, preexec_fn=prepare) == (100, words, b"")
    path.with_name("home of it").joinpath("bin", "python").write_text("#!/bin/sh\nexit 1\n")
    assert run(*shell, path, preexec_fn=prepare) == (75, b"" if 1 in closed else TEMPORARY, b"")


def test_reader_of_the_answer_is_gone(launcher: Launcher, shell: Sequence[str]) -> None:
    path = launcher("exit 1")
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run([*shell, path], input=MESSAGE, stdout=writer, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (75, b"")


def test_environment_is_passed_on_and_changes_nothing(launcher: Launcher, shell: Sequence[str], tmp_path: Path) -> None:
    trap = tmp_path / "env"
    trap.write_text("exit 3\n")
    path = launcher('for word; do echo "<$word>"; done; echo "$PATH"')
    files = {"ENV": str(trap), "BASH_ENV": str(trap)}
    garbage = files | {"IFS": "/ae-10 ", "PATH": "/nowhere", "CDPATH": "/", "PS4": "$(x)"}
    words = [shutil.which(shell[0]) or "", *shell[1:], path, "--sender", "a b@example.org", "", "*"]
    code, output, errors = run(*words, env=garbage, cwd="/")
    assert (code, errors) == (0, b"")
    expected = ["-I", "-X", "utf8", "-m", "deliver", "--sender", "a b@example.org", "", "*"]
    assert output.decode().splitlines() == [*(f"<{word}>" for word in expected), "/nowhere"]
    # And so for the answer that the launcher gives itself, with commands of its own.
    path.with_name("home of it").joinpath("bin", "python").write_text("#!/bin/sh\nexit 1\n")
    assert run(*words, env=garbage, cwd="/", stdin=b"x" * 300_000) == (75, TEMPORARY, b"")


@pytest.mark.parametrize("name", ["deliver", "quarantine"])
def test_found_through_symlinks(launcher: Launcher, shell: Sequence[str], tmp_path: Path, name: str) -> None:
    path = launcher('echo "$0"', name, filled=False)
    first = tmp_path / "first"
    first.symlink_to("home of it/bin/" + name)
    second = tmp_path / "elsewhere" / "second"
    second.parent.mkdir()
    second.symlink_to("../first")
    python = str(path.parent / "python").encode() + b"\n"
    for start in (path, first, second):
        assert run(*shell, start, env={"PATH": os.defpath}) == (0, python, b"")
    # As the kernel starts it, found in PATH and by a relative name.
    assert run(second) == (0, python, b"")
    assert run(name, env={"PATH": str(path.parent)}) == (0, python, b"")
    code, output, errors = run(*shell, f"./{name}", cwd=path.parent)  # bash's exec makes the path absolute
    assert (code, output.strip().rpartition(b"/")[2], errors) == (0, b"python", b"")


@pytest.mark.parametrize("first", ["check", "--help", "mailfilter"])
def test_as_maildrop(launcher: Launcher, shell: Sequence[str], tmp_path: Path, first: str) -> None:
    # maildrop's argument is the name of a filter file, any name.
    path = launcher('echo "$*"; echo noise >&2')
    (tmp_path / "maildrop").symlink_to(path)
    expected = f"-I -X utf8 -m deliver --as-maildrop {first}\n".encode()
    assert run(*shell, tmp_path / "maildrop", first) == (0, expected, b"")
    assert run(*shell, "maildrop", first, cwd=tmp_path) == (0, expected, b"")


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_commands_for_people_keep_their_codes_and_words(launcher: Launcher, shell: Sequence[str], command: str) -> None:
    path = launcher('echo "$*"; echo "what went wrong" >&2; exit 3')
    expected = (3, f"-I -m deliver {command} x\n".encode(), b"what went wrong\n")
    assert run(*shell, path, command, "x") == expected


@pytest.mark.parametrize("name", ["deliver", "quarantine"])
def test_commands_for_people_are_python_itself(launcher: Launcher, shell: Sequence[str], name: str) -> None:
    # A supervisor's signals to `deliver serve` must reach Python.
    path = launcher('echo "$$"', name)
    with subprocess.Popen([*shell, path, "serve"], stdout=subprocess.PIPE) as process:
        output, _ = process.communicate(timeout=60)
        assert output == f"{process.pid}\n".encode()


def test_quarantine_runs_its_module(launcher: Launcher, shell: Sequence[str]) -> None:
    path = launcher('echo "$*"; echo "no such message" >&2; exit 1', "quarantine")
    assert run(*shell, path, "show", "1 2") == (1, b"-I -m quarantine show 1 2\n", b"no such message\n")


def test_a_word_that_is_no_command_is_a_delivery(launcher: Launcher, shell: Sequence[str]) -> None:
    path = launcher("exit 2")
    for words in (["--unknown"], ["checks"], ["user@example.org"], ["--maildir", "check"], [""]):
        assert run(*shell, path, *words) == (75, TEMPORARY, b"")


# From here on, as installed.


# With these words deliver itself says, wherever it is installed, that it has no configuration.
NOWHERE = ["--config", "/nowhere/mailfilter.toml", "u@example.org"]
NOT_CONFIGURED = (75, b"4.3.5 Mail filter is not configured (#4.3.5)\n", b"")


def test_installed_through_symlinks(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "deliver").symlink_to(installed / "bin" / "deliver")
    (tmp_path / "again").symlink_to("deliver")
    for path in (installed / "bin" / "deliver", tmp_path / "again", installed / "lib" / "deliver" / "bin" / "deliver"):
        assert run(path, *NOWHERE, cwd="/") == NOT_CONFIGURED


def test_installed_for_everybody(installed: Path) -> None:
    nobody = {"user": 65534} if os.geteuid() == 0 else {}
    assert run(installed / "bin" / "deliver", *NOWHERE, cwd="/", **nobody) == NOT_CONFIGURED


def test_python_is_isolated(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "deliver").mkdir()
    (tmp_path / "deliver" / "__init__.py").write_text("raise SystemExit(0)")
    (tmp_path / "sitecustomize.py").write_text("raise SystemExit(0)")
    garbage = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONHOME": "/nowhere", "LANG": "xx_YY.latin9"}
    assert run(installed / "bin" / "deliver", *NOWHERE, cwd="/", env=garbage) == NOT_CONFIGURED


def test_missing_module_is_try_again_and_logged(installed: Path, tmp_path: Path) -> None:
    home = tmp_path / "lib"
    shutil.copytree(installed / "lib" / "deliver", home, symlinks=True)
    for package in home.glob("lib/python*/site-packages/deliver"):
        shutil.rmtree(package)
    calls = tmp_path / "calls"
    words = [strace.needed(), "-f", "-qq", "-s", "500", "-e", "trace=execve", "-e", "signal=none", "-o", calls]
    assert run(*words, home / "bin" / "deliver") == (75, TEMPORARY, b"")
    logged = [line for line in calls.read_text().splitlines() if '/logger", ["logger", "-t", "deliver"' in line]
    assert len(logged) == 1
    assert "ended with 1: ModuleNotFoundError: No module named 'deliver'" in logged[0]


def test_delivery_has_no_setuptools(installed: Path) -> None:
    # `import clamd` would load its pkg_resources: 0.1 s, and with some versions a warning.
    script = "import sys; from importlib.util import find_spec; print(*filter(find_spec, sys.argv[1:]))"
    words = ["-I", "-c", script, "setuptools", "pkg_resources", "hatchling", "clamd"]
    assert run(installed / "lib" / "deliver" / "bin" / "python", *words) == (0, b"clamd\n", b"")


def test_installing_again(installed: Path) -> None:
    make_install(installed)
    assert run(installed / "bin" / "deliver", *NOWHERE, cwd="/") == NOT_CONFIGURED
    assert sorted(path.name for path in (installed / "bin").iterdir()) == ["deliver", "quarantine"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((), b"Commands:"), (("chek",), b"No such command 'chek'"), (("--hepl",), b"No such option"),],
)
def test_a_slip_at_a_terminal_is_answered_at_once(installed: Path, arguments: Sequence[str], words: bytes) -> None:
    """Nobody's message comes from a terminal; the command must not wait there for one."""
    ours, theirs = os.openpty()
    try:
        done = subprocess.run(
            [installed / "bin" / "deliver", *arguments],
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=60,
            check=False,
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 75
    assert words in done.stdout
