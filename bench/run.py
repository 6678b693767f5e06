"""Measure deliver beside what it replaces and what else there is: `make bench`, or `python bench/run.py [PART...]`.

Every part varies one factor. The sides take turns in rounds, so that whatever else the machine does hits all of them;
a figure is the median of the rounds, in brackets the least and the greatest. CPU is that of all processes of a side
except the scanners. The tables go to standard output, everything with all rounds as JSON to bench/results.

BENCH=full measures longer and more; --prefix PREFIX takes an installation that is there instead of making one.
"""

import argparse
import array
import datetime as dt
import json
import os
import platform
import pwd
import resource  # noqa: F401  # os.wait4 imports it, and later on this interpreter's own directory may be out of reach
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(CHECKOUT / "tests"), str(CHECKOUT)]

import pytest  # noqa: E402, F401  # as resource: servers.needs imports it
import servers  # noqa: E402
from installed import make_install  # noqa: E402
from measure import Cost, Spread, short, spread, table  # noqa: E402
from sides import (  # noqa: E402
    Chain,
    DovecotLda,
    DovecotLmtp,
    Lmtp,
    LmtpSide,
    Message,
    OneShot,
    Procmail,
    Service,
    Setting,
    Side,
    all_sides,
    lmtp,
    missing,
)
from stubs import Stubs, stubs  # noqa: E402

EVERYBODY: tuple[type[Side], ...] = (Chain, Procmail, DovecotLda, DovecotLmtp, OneShot, Service, Lmtp)
KB = 1000
MB = 1000 * KB
SMALL = 2 * KB
SIZES = (SMALL, 20 * KB, 200 * KB, 5 * MB)
SLOW = {"clamd": 0.050, "spamd": 0.020}
NOISE = 1.1
"""Ratio up to which two costs are taken for the same."""

RECOUNT_AT = 196
"""Deliveries until maildirsize has 5120 bytes, from which on every program counts anew; a line has 26."""


class Effort(NamedTuple):
    """How much is measured."""

    rounds: int
    batch: int
    held: float  # seconds for each side
    slices: int
    messages: int  # for the growth of memory
    sizes_with_real: tuple[int, ...]


EFFORTS = {
    "quick": Effort(2, 2, 3, 1, 500, (SMALL,)),
    "default": Effort(5, 5, 15, 3, 5000, (SMALL,)),
    "full": Effort(15, 10, 60, 4, 100_000, SIZES),
}


class Target(NamedTuple):
    """A line of the last table."""

    what: str
    measured: str
    to_reach: str
    reached: bool
    why: str = ""


class Bench:
    """One run. ``results`` is what becomes JSON."""

    def __init__(self, directory: Path, prefix: Path, effort: Effort) -> None:
        self.directory = directory
        self.prefix = prefix
        self.effort = effort
        self.results: dict[str, Any] = {}
        self.targets: list[Target] = []
        self._count = 0

    def fresh(self) -> Path:
        """A path for a new directory; short, for sockets lie below it."""
        self._count += 1
        return self.directory / f"{self._count}"

    @contextmanager
    def sides(self, setting: Setting, kinds: Sequence[type[Side]] = EVERYBODY) -> Iterator[dict[str, Side]]:
        """Running sides by name."""
        with all_sides(self.fresh(), self.prefix, setting, kinds) as made:
            yield {side.name: side for side in made}

    def rounds(
        self, sides: dict[str, Side], size: int, *, rounds: int = 0, batch: int = 0, users: int = 1, at_once: int = 1
    ) -> "Rounds":
        """Let the sides take turns; each delivers a batch of messages, one after another."""
        measured = Rounds()
        for side in sides.values():
            self._batch(side, size, 1, users, at_once)  # whatever is read or made at the first time
        for number in range(rounds or self.effort.rounds):
            names = list(sides)
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                # Starting Python with all packages dwarfs the rest; fewer messages tell as much.
                several = (batch or self.effort.batch) if sides[name].name != OneShot.name else 2
                measured.add(name, self._batch(sides[name], size, several, users, at_once))
        for side in sides.values():
            side.empty()
        return measured

    def _batch(self, side: Side, size: int, count: int, users: int, at_once: int) -> Cost:
        """The median of the times on the clock, the mean of CPU."""
        costs = []
        for _ in range(count):
            message = Message(size, self.directory)
            costs.append(side.deliver(message, users, at_once=at_once))
            message.discard()
        return Cost(
            statistics.median(cost.wall for cost in costs),
            statistics.mean(cost.cpu for cost in costs),
            statistics.mean(cost.commands for cost in costs),
        )

    def target(
        self,
        what: str,
        measured: float | Spread,
        most: float,
        unit: str = "",
        why: str = "",
        *,
        least: bool = False,
    ) -> None:
        """Note whether a figure is at most ``most``, or at least; where it is not, ``why`` explains."""
        value = measured.median if isinstance(measured, Spread) else measured
        reached = value >= most if least else value <= most
        figure = str(measured) if isinstance(measured, Spread) else short(measured)
        goal = f"{'>=' if least else '<='} {most:g}{unit}"
        self.targets.append(Target(what, figure + unit, goal, reached, "" if reached else why))


class Rounds:
    """What the rounds gave, by side."""

    def __init__(self) -> None:
        self.costs: dict[str, list[Cost]] = {}

    def add(self, name: str, cost: Cost) -> None:
        """One round of one side."""
        self.costs.setdefault(name, []).append(cost)

    def ms(self, name: str, field: str) -> Spread:
        """Milliseconds per message."""
        return spread(1000 * getattr(cost, field) for cost in self.costs[name])

    def ratio(self, name: str, other: str, field: str) -> Spread:
        """One side's cost by another's, round by round."""
        pairs = zip(self.costs[name], self.costs[other], strict=True)
        return spread(getattr(mine, field) / getattr(its, field) for mine, its in pairs)

    def as_json(self) -> dict[str, Any]:
        """Every round, in milliseconds."""
        return {
            name: {field: [round(1000 * getattr(cost, field), 3) for cost in costs] for field in Cost._fields}
            for name, costs in self.costs.items()
        }

    def rows(self, reference: str = Chain.name) -> list[list[str]]:
        """Name, CPU, time on the clock and both by the reference's."""
        found = []
        for name in self.costs:
            ratios = ["", ""]
            if reference in self.costs and name != reference:
                ratios = [str(self.ratio(name, reference, field)) for field in ("cpu", "wall")]
            found.append([name, str(self.ms(name, "cpu")), str(self.ms(name, "wall")), *ratios])
        return found


HEAD = ("", "CPU ms", "wall ms", "CPU / chain", "wall / chain")


def show(title: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table under its title."""
    print(f"\n{title}\n\n{table(head, rows)}", flush=True)


def size(bench: Bench) -> None:
    """Messages of 2 KB to 5 MB; scanners that answer at once."""
    results = bench.results["message size"] = {}
    with stubs(bench.fresh()) as scanners, bench.sides(_with(scanners)) as sides:
        for number in SIZES:
            measured = bench.rounds(sides, number)
            results[_bytes(number)] = measured.as_json()
            show(f"Message of {_bytes(number)}, scanners that answer at once", HEAD, measured.rows())
            if Chain.name not in sides:
                continue
            if number in (SMALL, 200 * KB):
                startup = _startup(bench)
                mine = measured.ms(Service.name, "commands")
                why = (
                    f"{short(mine.median)} of {short(measured.ms(Service.name, 'cpu').median)} ms are the client's; "
                    f"sh and an empty Python script alone take {short(startup.median)} ms"
                )
                most = 0.8 if number == SMALL else 0.4
                ratio = measured.ratio(Service.name, Chain.name, "cpu")
                bench.target(f"CPU at {_bytes(number)}, service / chain", ratio, most, why=why)
            if number == SMALL:
                measured_ms = measured.ms(Lmtp.name, "cpu")
                bench.target(
                    f"CPU at {_bytes(number)}, LMTP / chain",
                    measured.ratio(Lmtp.name, Chain.name, "cpu"),
                    0.2,
                    why=f"{short(measured_ms.median)} ms, a connection for each message included",
                )


def _startup(bench: Bench) -> Spread:
    """Milliseconds of CPU for what every call of the client pays before its first line of ours: sh, Python."""
    python = bench.prefix / "lib" / "deliver" / "bin" / "python"
    used = []
    for _ in range(bench.effort.rounds * 2):
        process = subprocess.Popen(["/bin/sh", "-c", f"{python} -I -S -X utf8 /dev/null; exit $?"])
        _, _, usage = os.wait4(process.pid, 0)
        process.returncode = 0
        used.append(1000 * (usage.ru_utime + usage.ru_stime))
    result = spread(used)
    bench.results["sh and an empty Python script, CPU ms"] = used
    return result


def scanners(bench: Bench) -> None:
    """Scanners that take 50 and 20 ms."""
    with stubs(bench.fresh(), **SLOW) as slow, bench.sides(_with(slow)) as sides:
        measured = bench.rounds(sides, SMALL)
    bench.results["scanners of 50 and 20 ms"] = measured.as_json()
    show("Message of 2 KB, clamd takes 50 ms and spamd 20 ms", HEAD, measured.rows())
    for name in (Service.name, Lmtp.name):
        why = f"{short(measured.ms(name, 'cpu').median)} ms of CPU, the rest waits for the disk, or for a turn"
        bench.target(f"wall time with scanners of 50 and 20 ms, {name}", measured.ms(name, "wall"), 60, " ms", why)


def real(bench: Bench) -> None:
    """The real clamd and spamd, with a signature file of one line and SpamAssassin's own rules."""
    results = bench.results["real scanners"] = {}
    home = bench.fresh()
    home.mkdir()
    with (
        servers.clamd(home) as clamd,
        servers.spamd(home) as spamd,
        bench.sides(Setting(clamd.address, spamd.address)) as sides,
    ):
        for number in bench.effort.sizes_with_real:
            measured = bench.rounds(sides, number, rounds=3, batch=3)
            results[_bytes(number)] = measured.as_json()
            show(f"Message of {_bytes(number)}, real clamd and spamd", HEAD, measured.rows())


def recipients(bench: Bench) -> None:
    """Fifty local recipients of one message; scanners of 50 and 20 ms."""
    many = 50
    ways: list[tuple[str, type[Side], int]] = [
        ("maildrop chain, one after another", Chain, 1),
        ("maildrop chain, ten at once", Chain, 10),
        ("maildrop chain, fifty at once", Chain, many),
        ("deliver, service, fifty at once", Service, many),
        ("deliver, LMTP, one transaction", Lmtp, 1),
        ("Dovecot LMTP + Sieve, one transaction", DovecotLmtp, 1),
    ]
    measured = Rounds()
    scans: dict[str, list[dict[str, int]]] = {}
    kinds = (Chain, DovecotLmtp, Service, Lmtp)
    with stubs(bench.fresh(), **SLOW) as slow, bench.sides(_with(slow, users=many), kinds) as sides:
        for _ in range(min(3, bench.effort.rounds)):
            for way, kind, at_once in ways:
                if kind.name not in sides:
                    continue
                before = slow.counts.read()
                message = Message(SMALL, bench.directory)
                measured.add(way, sides[kind.name].deliver(message, many, at_once=at_once))
                message.discard()
                after = slow.counts.read()
                scans.setdefault(way, []).append({name: after[name] - before[name] for name in ("clamd", "spamd")})
        for side in sides.values():
            side.empty()
    bench.results["50 recipients"] = {"costs": measured.as_json(), "scans": scans}
    reference = ways[0][0]
    rows = [
        [*row, " + ".join(str(statistics.median(one[name] for one in scans[row[0]])) for name in ("clamd", "spamd"))]
        for row in measured.rows(reference)
    ]
    head = ("", "CPU ms", "wall ms", "CPU / first", "wall / first", "scans")
    show("50 recipients of one message of 2 KB, clamd takes 50 ms and spamd 20 ms", head, rows)
    if reference not in measured.costs:
        return
    for way in (ways[3][0], ways[4][0]):
        worst = max(max(one.values()) for one in scans[way])
        bench.target(f"50 recipients, {way}: scans of each kind", worst, 1)
        cpu = measured.ms(way, "cpu").median
        bench.target(
            f"50 recipients, {way}: wall / chain one after another",
            measured.ratio(way, reference, "wall"),
            0.1,
            why=f"{short(cpu)} ms of CPU on {os.cpu_count()} cores, and 50 synced files",
        )


def rules(bench: Bench) -> None:
    """1, 10 and 1,000 rules of the user's, a pattern on the subject each, none of which matches."""
    results = bench.results["rules"] = {}
    with stubs(bench.fresh()) as scanners:
        for number in (1, 10, 1000):
            with bench.sides(_with(scanners, rules=number)) as sides:
                measured = bench.rounds(sides, SMALL, rounds=3, batch=3)
            results[str(number)] = measured.as_json()
            show(f"Message of 2 KB, {number:,} rules", HEAD, measured.rows())


def old(bench: Bench) -> None:
    """A Maildir of 100,000 messages against an empty one, also when its quota is counted anew."""
    kinds = (Chain, OneShot, Service, Lmtp)
    full = " (100,000)"
    with (
        stubs(bench.fresh()) as scanners,
        bench.sides(_with(scanners), kinds) as empty,
        bench.sides(_with(scanners, old=100_000), kinds) as filled,
    ):
        both: dict[str, Side] = {}
        for name in empty:
            both |= {name: empty[name], name + full: filled[name]}
        measured = bench.rounds(both, SMALL)
        counting = (Chain.name, Service.name, Lmtp.name)
        sides = {name + full: both[name + full] for name in counting if name in empty}
        recounts, read = _recounts(bench, sides, read=False), _recounts(bench, sides, read=True)
        for side in both.values():
            side.empty()
    bench.results["messages in the Maildir"] = {
        "costs": measured.as_json(),
        "with a recount": recounts.as_json(),
        "with a recount, some were read since the last": read.as_json(),
    }
    rows = []
    for name in empty:
        row = [name]
        for field in ("cpu", "wall"):
            row += [str(measured.ms(name, field)), str(measured.ms(name + full, field))]
            row.append(str(measured.ratio(name + full, name, field)))
        for some in (recounts, read):
            row.append(str(some.ms(name + full, "cpu")) if name + full in some.costs else "")
        rows.append(row)
    head = ("", "CPU ms, 0", "100,000", "ratio", "wall ms, 0", "100,000", "ratio", "CPU ms, recount", "some read")
    title = f"Maildir of 0 and of 100,000 messages; the quota is counted anew at every {RECOUNT_AT}th delivery"
    show(title, head, rows)
    for name in (OneShot.name, Service.name, Lmtp.name):
        for field in ("cpu", "wall"):
            ratio = measured.ratio(name + full, name, field)
            why = "the rounds spread too far to tell" if ratio.low <= 1 else ""
            bench.target(f"{field} in a Maildir of 100,000 / empty, {name}", ratio, NOISE, why=why)
    for name in (Service.name, Lmtp.name):
        for some, words in ((recounts, ""), (read, ", some were read since the last")):
            usual, once = (those.ms(name + full, "cpu").median for those in (measured, some))
            share = (once - usual) / RECOUNT_AT
            theirs = ""
            if Chain.name in empty:
                its = some.ms(Chain.name + full, "cpu").median - measured.ms(Chain.name + full, "cpu").median
                theirs = f"; the chain's share is {short(its / RECOUNT_AT)} ms"
            bench.target(
                f"the same for cpu with a share of the recounts{words}, {name}",
                (usual + share) / measured.ms(name, "cpu").median,
                NOISE,
                why=f"counting takes {short(once - usual)} ms, {short(share)} ms for each delivery{theirs}",
            )


def _recounts(bench: Bench, sides: dict[str, Side], *, read: bool) -> Rounds:
    """Deliveries that find maildirsize full; with ``read``, somebody has marked a message as read since the last."""
    found = Rounds()
    flags = ["S", "FS"]
    for _ in range(3):
        for user in (user for side in sides.values() for user in side.home.glob("u*")):
            with (user / "Maildir" / "maildirsize").open("a") as file:
                file.write(f"{0:12} {0:12}\n" * RECOUNT_AT)
            if read:
                one, other = (user / "Maildir" / "cur" / f"1700000000.M0P1V0I0.mx,S=0:2,{some}" for some in flags)
                one.rename(other)
        if read:
            flags.reverse()
            time.sleep(3)  # nobody reads mail at the very moment at which it comes
        for name, side in sides.items():
            message = Message(SMALL, bench.directory)
            found.add(name, side.deliver(message))
            message.discard()
    return found


def memory(bench: Bench) -> None:
    """Fifty messages of 25 MB in work at the same time, by LMTP."""
    many = 50
    with stubs(bench.fresh(), clamd=8.0) as slow, bench.sides(_with(slow, users=many, quota=False), (Lmtp,)) as sides:
        side = sides[Lmtp.name]
        assert isinstance(side, LmtpSide)
        assert side.residents is not None
        side.deliver(Message(SMALL))
        before = side.residents.memory()
        side.residents.forget_most()
        send(side, many, messages=1, size=25 * MB)
        most = side.residents.most_memory()
        at_once = slow.counts.read()["most at once"]
        side.empty()
    bench.results["memory, 50 messages of 25 MB"] = {"before MB": before, "most MB": most, "in work": at_once}
    show(
        "50 messages of 25 MB by LMTP",
        ("", "MB"),
        [["service before", short(before)], ["at most", short(most)], ["messages in work at once", at_once]],
    )
    if at_once < many:
        print(f"bench: only {at_once} of {many} were in work at once: the disk is too slow for this", file=sys.stderr)
    bench.target(f"memory with {at_once} messages of 25 MB in work", most, 300, " MB", f"{short(before)} MB before")


def growth(bench: Bench) -> None:
    """Memory after many messages."""
    count = bench.effort.messages
    connections = 8
    with stubs(bench.fresh()) as scanners, bench.sides(_with(scanners, users=20, quota=False), (Lmtp,)) as sides:
        side = sides[Lmtp.name]
        assert isinstance(side, LmtpSide)
        assert side.residents is not None
        send(side, connections, messages=64, size=SMALL)
        samples = [side.residents.memory()]
        steps = 5
        for _ in range(steps):
            send(side, connections, messages=count // connections // steps, size=SMALL)
            samples.append(side.residents.memory())
            side.empty()
    bench.results["growth of memory"] = {"messages": count, "MB": samples}
    done = range(0, count + 1, count // steps)
    rows = list(zip(done, map(short, samples), strict=True))
    show("Memory of the service, scanners that answer at once", ("messages", "MB"), rows)
    why = "verdicts are kept for 10 minutes, a limited number of them"
    bench.target(f"growth after {count:,} messages", samples[-1] - samples[0], 5, " MB", why)


def held(bench: Bench) -> None:
    """Messages per second, held for a while over eight connections; scanning off."""
    connections = 8
    found: dict[str, list[dict[str, Any]]] = {}
    setting = Setting(users=20, quota=False)
    effort = bench.effort
    with bench.sides(setting, (DovecotLmtp, Lmtp)) as sides:
        for side in sides.values():
            assert isinstance(side, LmtpSide)
            send(side, connections, messages=5, size=SMALL)
        for number in range(effort.slices):
            for name in list(sides)[:: -1 if number % 2 else 1]:
                side = sides[name]
                assert isinstance(side, LmtpSide)
                assert side.residents is not None
                before = side.residents.cpu()
                begun = time.monotonic()
                times = send(side, connections, seconds=effort.held / effort.slices, size=SMALL)
                took = time.monotonic() - begun
                used = side.residents.cpu() - before
                found.setdefault(name, []).append(
                    {
                        "messages per second": len(times) / took,
                        "CPU ms": 1000 * used / len(times),
                        "cores": used / took,
                        "median ms": 1000 * statistics.median(times),
                        "99th percentile ms": 1000 * statistics.quantiles(times, n=100)[98],
                    }
                )
                side.empty()
    bench.results["held"] = {"seconds": effort.held, "connections": connections, "slices": found}
    columns = tuple(next(iter(found.values()))[0])
    rows = [[name, *(str(spread(one[column] for one in each)) for column in columns)] for name, each in found.items()]
    title = f"Messages of 2 KB held for {effort.held:g} s over {connections} connections, scanning off"
    show(title, ("", *columns), rows)
    if DovecotLmtp.name in found:
        pairs = zip(found[Lmtp.name], found[DovecotLmtp.name], strict=True)
        ratio = spread(mine["messages per second"] / its["messages per second"] for mine, its in pairs)
        cores = statistics.median(one["cores"] for one in found[Lmtp.name])
        theirs = statistics.median(one["cores"] for one in found[DovecotLmtp.name])
        why = f"one process used {short(cores)} cores, Dovecot's {connections} processes {short(theirs)}"
        bench.target("messages per second, LMTP / Dovecot LMTP", ratio, 1, why=why, least=True)


PARTS: dict[str, Callable[[Bench], None]] = {
    part.__name__: part for part in (size, scanners, real, recipients, rules, old, memory, growth, held)
}


def send(side: LmtpSide, connections: int, *, size: int, messages: int = 0, seconds: float = 0.0) -> list[float]:
    """Send over several connections at once, from a process each; how long each message took, in seconds."""
    Message(size)  # so that all share its body
    files = [tempfile.TemporaryFile() for _ in range(connections)]  # noqa: SIM115 - closed below, when read
    workers = []
    for number, file in enumerate(files):
        pid = os.fork()
        if pid:
            workers.append(pid)
            continue
        code = 1
        try:
            times = array.array("d")
            mine = range(number % side.setting.users, side.setting.users, connections)
            users = [f"u{one}@example.org" for one in mine]
            with lmtp(side.socket) as conversation:
                end = time.monotonic() + seconds
                while len(times) < messages if messages else time.monotonic() < end:
                    message = Message(size)
                    begun = time.monotonic()
                    conversation.send(message.wire, [users[len(times) % len(users)]])
                    times.append(time.monotonic() - begun)
            file.write(times.tobytes())
            file.flush()
            code = 0
        finally:
            os._exit(code)
    failed = [pid for pid in workers if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])]
    if failed:
        raise RuntimeError(f"{len(failed)} of {connections} LMTP clients failed")
    found = array.array("d")
    for file in files:
        file.seek(0)
        found.frombytes(file.read())
        file.close()
    return list(found)


def _with(scanners: Stubs, **more: Any) -> Setting:
    return Setting(clamd=scanners.clamd, spamd=scanners.spamd, **more)


def _bytes(number: int) -> str:
    return f"{number // MB} MB" if number >= MB else f"{number // KB} KB"


def machine() -> dict[str, Any]:
    """Where and with what this was measured."""

    def said(*command: str) -> str:
        return subprocess.run(command, check=False, capture_output=True, text=True, cwd=CHECKOUT).stdout.strip()

    packages = "maildrop courier-base clamav-daemon clamdscan spamd spamc procmail dovecot-lmtpd dovecot-sieve".split()
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "commit": said("git", "describe", "--always", "--dirty"),
        "cpu": cpu[0].partition(":")[2].strip() if cpu else platform.machine(),
        "cores": os.cpu_count(),
        "memory GB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "kernel": platform.release(),
        "file system": said("stat", "-f", "-c", "%T", "/tmp"),
        "load before": os.getloadavg(),
        "packages": dict(line.split() for line in said("dpkg-query", "-W", *packages).splitlines() if line.split()[1:]),
    }


def measure(prefix: Path, parts: Sequence[str], effort: Effort) -> dict[str, Any]:
    """Run the parts below a scratch directory; everything that was found."""
    results: dict[str, Any] = {}
    with servers.scratch() as directory:
        bench = Bench(directory, prefix, effort)
        for name in parts:
            begun = time.monotonic()
            PARTS[name](bench)
            bench.results.setdefault("seconds", {})[name] = round(time.monotonic() - begun, 1)
        results |= bench.results
    rows = [[one.what, one.measured, one.to_reach, "yes" if one.reached else "no", one.why] for one in bench.targets]
    if rows:
        show("To reach", ("", "measured", "to reach", "reached", "why not"), rows)
    results["to reach"] = [one._asdict() for one in bench.targets]
    return results


def unprivileged(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Do the work as nobody if we are root: as mail is delivered, and with commands started by vfork."""
    if os.geteuid() != 0:
        return work()
    nobody = pwd.getpwnam("nobody")
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            os.setgroups([])
            os.setresgid(nobody.pw_gid, nobody.pw_gid, nobody.pw_gid)
            os.setresuid(nobody.pw_uid, nobody.pw_uid, nobody.pw_uid)
            with open(writing, "w") as answer:
                json.dump(work(), answer)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    os.close(writing)
    with open(reading) as answer:
        text = answer.read()
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        raise SystemExit("bench: failed")
    return dict(json.loads(text))


def main() -> None:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prefix", type=Path, help="measure this installation")
    parser.add_argument("parts", nargs="*", metavar="PART", help=" ".join(PARTS))
    options = parser.parse_args()
    if wrong := [part for part in options.parts if part not in PARTS]:
        parser.error(f"there is no part {wrong[0]}; parts are {' '.join(PARTS)}")
    kind = os.environ.get("BENCH") or "default"
    if kind not in EFFORTS:
        parser.error(f"BENCH is one of {' '.join(EFFORTS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is ended
    begun = time.monotonic()
    where = machine()
    if where["load before"][0] > 0.5:
        print(f"bench: the machine is busy (load {where['load before'][0]:.1f}): expect wide spreads", file=sys.stderr)
    for side, package in missing().items():
        print(f"bench: without {side.name}: {package} is not installed", file=sys.stderr)
    prefix = options.prefix
    if prefix is None:
        print("bench: make install into a temporary directory", flush=True)
        prefix = Path(tempfile.mkdtemp(prefix="deliver-installed-", dir="/tmp"))
        prefix.chmod(0o755)
    try:
        if options.prefix is None:
            make_install(prefix)
        python = subprocess.run([prefix / "lib/deliver/bin/python", "-V"], check=True, capture_output=True, text=True)
        where["python"] = python.stdout.strip()
        print(table(("", ""), [[name, value] for name, value in where.items() if name != "packages"]))
        print(" ".join(f"{name} {version}" for name, version in where["packages"].items()), flush=True)
        results = unprivileged(lambda: measure(prefix, options.parts or list(PARTS), EFFORTS[kind]))
    finally:
        if options.prefix is None:
            shutil.rmtree(prefix, ignore_errors=True)
    path = CHECKOUT / "bench" / "results" / f"{where['date'][:16].replace(':', '')}-{kind}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": where, "effort": kind, **results}, indent=1) + "\n")
    print(f"\nbench: {time.monotonic() - begun:.0f} s; {path.relative_to(CHECKOUT)}")


if __name__ == "__main__":
    main()
