"""The door for MTAs: one message on standard input, an exit code and at most one line as the answer.

Whatever happens in here ends in 0, 75, 99 or 100. Commands for people are click's and are loaded only for them.
"""

import contextlib
import os
import signal
import sys
import time
from typing import Any, NoReturn

from deliver.errors import Deferred, DeliverError
from deliver.values import Outcome, Reply

COMMANDS = frozenset(
    (
        *"check replay doctor sample serve quota convert enable disable status adopt expire learn stats".split(),
        *("--help", "-h", "--version"),
    )
)
"""First arguments that mean a person, not an MTA, is calling."""

DEADLINE = 300.0
"""Seconds until the configuration has been read and says another: no MTA waits less than 1000 s."""

CPU_LIMIT = 900
"""Seconds of CPU for this process, and for each that it starts: the longest deadline; no delivery computes so long."""

GRACE = 1.0
"""Seconds between the deadline that cleans up and the alarm that does not."""


class Stopped(SystemExit):
    """A signal asked us to end. asyncio lets a SystemExit through from any callback; other exceptions it keeps."""


def main() -> None:
    """Run as the installed command."""
    arguments = sys.argv[1:]
    if arguments and arguments[0] in COMMANDS:
        from deliver.commands import cli

        cli(prog_name="deliver")
        return
    started = time.monotonic()
    reply = Reply(75, "4.3.0 Temporary failure (#4.3.0)")
    had_input = False
    settled: list[Reply] = []
    try:
        had_input = _descriptors()
        _signals(settled)
        _alarm(DEADLINE)
        _limit_cpu()
        reply = _deliver(arguments, started, had_input, settled)
    except BaseException as error:
        reply = settled[0] if settled else _failed(error)
    _leave(reply, had_input)


def _descriptors() -> bool:
    """Make 0, 1 and 2 exist, so that no file of ours takes their place. Whether there was a standard input."""
    had_input = True
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            had_input = had_input and fd != 0
            os.open(os.devnull, os.O_RDWR)
    return had_input


def _signals(settled: list[Reply]) -> None:
    """qmail-lspawn starts deliveries with SIGCHLD blocked, others ignore it; neither lets us wait for children."""
    os.umask(0o077)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGXCPU, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, _stop)
    signal.signal(signal.SIGALRM, lambda _number, _frame: _give_up(settled))


def _stop(number: int, _frame: Any) -> NoReturn:
    raise Stopped(f"stopped by signal {number}")


def _give_up(settled: list[Reply]) -> NoReturn:
    """Once the message is where it belongs it must not come again, however long the rest takes."""
    reply = settled[0] if settled else Reply(75, "4.4.7 Delivery took too long (#4.4.7)")
    with contextlib.suppress(OSError):
        _say(reply)
    os._exit(reply.code)


def _say(reply: Reply) -> None:
    if reply.line:
        os.write(1, reply.line.encode("ascii", "replace") + b"\n")


def _alarm(seconds: float) -> None:
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))


def _limit_cpu() -> None:
    """Where not one allocation succeeds any more, Python spins and hears no alarm; the kernel's SIGKILL it cannot miss.

    setrlimit(2), RLIMIT_CPU.
    """
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    if hard == resource.RLIM_INFINITY or hard > CPU_LIMIT:
        soft = CPU_LIMIT if soft == resource.RLIM_INFINITY else min(soft, CPU_LIMIT)
        resource.setrlimit(resource.RLIMIT_CPU, (soft, CPU_LIMIT))


def _leave(reply: Reply, had_input: bool) -> NoReturn:
    """Read what is left of standard input, answer, and go without waiting for any thread."""
    from deliver.message import drain

    with contextlib.suppress(BaseException):
        if had_input:
            drain(0)
    with contextlib.suppress(BaseException):
        _say(reply)
    os._exit(reply.code)


def _failed(error: BaseException) -> Reply:
    from deliver import exits

    if not isinstance(error, DeliverError):
        _log_failure(error)
    return exits.from_error(error)


def _log_failure(error: BaseException) -> None:
    """The site's log may be what failed, so this goes to syslog."""
    with contextlib.suppress(Exception):
        import traceback

        from deliver import log

        where = traceback.extract_tb(error.__traceback__)[-1] if error.__traceback__ else None
        log.to("syslog")(level="warning", detail=f"{type(error).__name__}: {error}", at=str(where))


def _deliver(arguments: list[str], started: float, had_input: bool, settled: list[Reply]) -> Reply:
    """The reply; ``settled`` gets it as soon as it is certain."""
    import asyncio

    from deliver import config, exits, log, maildrop, wiring
    from deliver.envelope import envelope_of, maildir_of
    from deliver.message import Message, Source, read_framing
    from deliver.pipeline import deliver
    from deliver.settings import Config

    write = log.to("syslog")
    recipient = ""
    try:
        call, filter_file = maildrop.read(arguments)
        if not had_input:
            raise Deferred("standard input is closed", "4.3.0 Unable to read message")
        environment = os.environ
        settings = Config()
        if not call.plain:
            settings = config.load(config.find(call.config, environment.get("DELIVER_CONFIG", "")))
        write = log.to(settings.log.to)
        if filter_file and not maildrop.is_replaced(filter_file, settings.maildrop.replaces, os.getcwd()):
            maildrop.run_real(settings.maildrop.program, arguments[1:])
        deadline = settings.deadline - (time.monotonic() - started)
        _alarm(deadline + GRACE)
        site = wiring.site(settings, blocking=_at_once)
        site = wiring.for_caller(site, environment)
        maildir = maildir_of(call, environment, settings.maildir)
        if os.geteuid() == 0:
            _become_owner(maildir)
            write(level="warning", detail=f"called as root; went on as uid {os.geteuid()}, the Maildir's owner")
        source = Source.read(0, lambda: wiring.spool(maildir))
        framing = read_framing(source.head)
        envelope = envelope_of(call, environment, framing, maildir)
        recipient = envelope.recipient
        message = Message(source, framing, envelope.return_path, wiring.forgeries(settings))

        def settle(outcome: Outcome) -> None:
            settled.append(exits.answer(outcome, environment if call.stop_after_spam else {}))

        async def with_deadline() -> None:
            async with asyncio.timeout(deadline):
                await deliver(site, message, envelope, settle)

        asyncio.new_event_loop().run_until_complete(with_deadline())
    except TimeoutError as error:
        write(level="warning", recipient=recipient, exit=75, detail="the overall deadline was reached")
        raise Deferred("deadline", "4.4.7 Delivery took too long") from error
    except DeliverError as error:
        write(
            level="warning", recipient=recipient, exit=exits.from_error(error).code, detail=error.detail or error.line
        )
        raise
    return settled[0]


def _become_owner(maildir: str) -> None:
    """What root writes the owner cannot read; and root would follow what the owner made to where root alone may go."""
    try:
        state = os.stat(maildir)
        os.setgroups([])
        os.setresgid(state.st_gid, state.st_gid, state.st_gid)
        os.setresuid(state.st_uid, state.st_uid, state.st_uid)
    except OSError as error:
        raise Deferred(f"{maildir}: {error.strerror}", "4.2.1 Mailbox is not accessible") from error


async def _at_once(function: Any, *arguments: Any) -> Any:
    """One message has nobody to wait for; in the main thread a signal can undo what was begun."""
    return function(*arguments)


if __name__ == "__main__":
    main()
