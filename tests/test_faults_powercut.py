"""The power fails: right after exit 0 the message is there, whole; after a kill anywhere nothing is broken.

maildrop and deliverquota are asked the same, and their messages are gone: that is documented, and asserted.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fault_cases
import powercut
import pytest
import report
import servers
import strace
from fault_cases import MESSAGE, SCENARIOS, Place, Scanners, Scenario
from installed import install_once  # noqa: F401 - the fixture `installed`
from lmtp_client import Client
from main_job import own
from test_service import Site

pytestmark = pytest.mark.faults

STORING = [scenario for scenario in SCENARIOS if scenario.code == 0 and "sent" not in scenario.stored]
KILLED = [scenario for scenario in STORING if scenario.name in {"inbox", "new folder", "quarantine", "copy and file"}]
# Between these the disk's state does not change in a way that a power cut could tell.
STEPS = {"fsync", "fdatasync", "linkat", "link", "rename", "renameat", "renameat2", "mkdir", "mkdirat"}
KINDS = ["ext4", "xfs"]
ROUNDS = 5
FULL = os.environ.get("DELIVER_FULL_SWEEP") == "1"
SEED = int(os.environ.get("DELIVER_FAULTS_SEED", "1"))
PATIENT = "60 s"
"""Deadline of the deliveries: these disks are files on another, and whoever else syncs that one holds them up."""

SAMPLE = 5
"""Steps of a scenario at which `make test-faults` kills; `make sweep` takes all."""


@pytest.fixture(scope="module")
def scanning() -> Iterator[Scanners]:
    with servers.scratch() as directory, fault_cases.scanners(directory) as found:
        yield found


@pytest.fixture(scope="module", params=KINDS)
def disk(request: pytest.FixtureRequest) -> Iterator[powercut.Disk]:
    with servers.scratch() as directory, powercut.Disk(request.param, directory) as found:
        yield found


def deliver(place: Place) -> int:
    with place.input() as stdin:
        settings: dict[str, Any] = {**place.settings(), "stdin": stdin, "stdout": subprocess.DEVNULL}
        return subprocess.run(place.command, check=False, timeout=60, **settings).returncode


def test_after_exit_0_the_message_survives(disk: powercut.Disk, installed: Path, scanning: Scanners) -> None:
    """Each scenario several times: a journal that happens to be written at the right moment proves nothing."""
    tried = 0
    for scenario in STORING:
        for _ in range(ROUNDS):
            place = Place(disk.path / "home", installed, scenario, scanning, PATIENT)
            disk.sync()
            assert deliver(place) == 0
            disk.cut()
            complaints = [one for one in place.complaints(0) if not one.startswith("left over")]
            assert complaints == [], scenario.name
            tried += 1
    report.say(f"power cut after exit 0, {disk.kind}: {tried} tried ({len(STORING)} kinds of delivery), all there, whole")


SERVICE = """
deadline = '60 s'
[log]
to = 'HERE/you/log'
[users]
maildir = 'HERE/{user}/Maildir'
[service]
socket = '/run/deliver/deliver.sock'
lmtp = ['unix:/run/deliver/lmtp.sock']
[[rule]]
file = 'New'
when = { recipient = ['anna@*', 'you@*'] }
[[rule]]
quarantine = true
when = { recipient = 'held@*' }
"""


def test_what_the_service_and_the_quarantine_accepted_survives(disk: powercut.Disk, installed: Path) -> None:
    """After 250 by LMTP, into the inbox, a new folder and the quarantine; after 0 by the service; after a release."""
    for _ in range(ROUNDS):
        shutil.rmtree(disk.path / "site", ignore_errors=True)
        (disk.path / "site").mkdir()
        site = Site(disk.path / "site", installed, SERVICE)
        maildirs = {name: site.user(name) for name in ("anna", "bert", "held")}
        site.serve()
        disk.sync()
        assert site.deliver(MESSAGE).code == 0
        with Client(site.lmtp) as client:
            client.say("LHLO there")
            replies = client.send("friend@example.net", [f"{name}@example.org" for name in maildirs], MESSAGE)
        disk.power_off()
        site.stop(signal.SIGKILL)
        disk.power_on()
        assert [reply[:4] for reply in replies] == ["250 "] * 3
        stored = [site.maildir / ".New" / "new", maildirs["anna"] / ".New" / "new", maildirs["bert"] / "new"]
        assert [_found(directory) for directory in stored] == ["1 whole"] * 3
        assert _found(maildirs["held"] / "deliver" / "quarantine" / "messages") == "1 whole"
        (envelope,) = (maildirs["held"] / "deliver" / "quarantine" / "held").iterdir()

        disk.sync()
        release = [str(installed / "bin" / "quarantine"), "--maildir", str(maildirs["held"]), "release", envelope.stem]
        subprocess.run(release, check=True, capture_output=True, **servers.unprivileged())
        disk.cut()
        assert _found(maildirs["held"] / "new") == "1 whole"
    report.say(f"power cut after 250, 0 by the service and a release, {disk.kind}: {5 * ROUNDS} tried, all there, whole")


def test_a_killed_delivery_survives_too(disk: powercut.Disk, installed: Path, scanning: Scanners, scratch: Path) -> None:
    """Killed at every sync, link, rename and mkdir, (a) then the power is cut: nothing broken is visible, and the
    next try stores the message; (b) the next try comes first: what it accepted survives the cut.
    """
    strace.needed()
    begun = time.monotonic()
    tried = 0
    wrong: dict[str, list[str]] = {}
    for scenario in KILLED:
        steps = _steps(disk, installed, scanning, scenario, scratch)
        draw = random.Random(f"{SEED} {disk.kind} {scenario.name}")
        for call in steps if FULL else draw.sample(steps, min(SAMPLE, len(steps))):
            fault = strace.Fault(call, "SIGKILL")
            for cut_first in (True, False):
                place = Place(disk.path / "home", installed, scenario, scanning, PATIENT)
                disk.sync()
                with place.input() as stdin:
                    done = strace.inject(fault, place.command, scratch / "trace", stdin=stdin, **place.settings())
                assert done.code == 75, fault
                assert done.hits, fault
                problems = []
                if cut_first:
                    disk.cut()
                    problems = place.complaints(done.code, killed=True)
                # The next try comes after minutes, and whoever finds a lock of half a minute ago takes it over.
                (place.maildir / "subscriptions.lock").unlink(missing_ok=True)
                code = deliver(place)
                if not cut_first:
                    disk.cut()
                problems += _after_the_second(place, code)
                tried += 1
                if problems:
                    wrong[f"{disk.kind}, {scenario.name}, {fault}, cut first: {cut_first}"] = problems
    report.say(f"killed, power cut before or after the next try, {disk.kind}: {tried} tried, {len(wrong)} did harm; {time.monotonic() - begun:.0f} s")
    assert not wrong, fault_cases.described(wrong)


def _steps(
    disk: powercut.Disk, installed: Path, scanning: Scanners, scenario: Scenario, scratch: Path
) -> list[strace.Call]:
    place = Place(disk.path / "home", installed, scenario, scanning, PATIENT)
    with place.input() as stdin:
        first = re.compile(re.escape(str(place.maildir)))
        calls, _ = strace.baseline(place.command, scratch / "trace", first, stdin=stdin, **place.settings())
    return [call for call in calls if call.name in STEPS]


def _after_the_second(place: Place, code: int) -> list[str]:
    """The first try answered 75, so that its copy may be there, too."""
    problems = [] if code == 0 else [f"the second try ends with {code}"]
    copies = place.copies()
    for folder, expected in place.scenario.stored.items():
        found = copies.pop(folder, [])
        if not 1 <= len(found) <= 2 or set(found) != {expected}:
            problems.append(f"{folder} has messages of {[len(one) for one in found]} bytes")
        if folder in place.folders():
            lines = {"subscriptions": folder, "courierimapsubscribed": f"INBOX.{folder}"}
            lists = {name: path.read_text().splitlines() for name in lines if (path := place.maildir / name).exists()}
            if not lists or any(lines[name] not in found for name, found in lists.items()):
                problems.append(f"{folder} is not subscribed")
    return problems + [f"a copy in {folder}" for folder in copies]


OTHERS = {
    "maildrop": ["maildrop", "filter"],
    "deliverquota (courier)": ["deliverquota.courier", "Maildir"],
}
"""The programs that we replace."""


def test_the_others_lose_it(disk: powercut.Disk, installed: Path) -> None:
    """maildrop syncs no directory: its message is in tmp/ alone, where readers remove it. deliverquota syncs nothing."""
    scenario = Scenario("plain", "", MESSAGE, {"INBOX": MESSAGE})
    rows = []
    for name, (program, *arguments) in OTHERS.items():
        path = servers.needs(program)
        new, tmp = _cut_after(disk, installed, scenario, [path, *arguments])
        rows.append([name, disk.kind, "0", new, tmp])
        assert new == "nothing", f"{name} has become better: say so in docs/reliability.md"
    place = Place(disk.path / "home", installed, scenario, deadline=PATIENT)
    disk.sync()
    assert deliver(place) == 0
    disk.cut()
    rows.insert(0, ["deliver", disk.kind, "0", _found(place.maildir / "new"), _found(place.maildir / "tmp")])
    assert rows[0][3] == "1 whole"
    report.table(
        f"exit 0, then the power is cut ({disk.kind})", ["program", "disk", "exit", "in new/", "in tmp/"], rows
    )


def _cut_after(disk: powercut.Disk, installed: Path, scenario: Scenario, command: list[str]) -> tuple[str, str]:
    place = Place(disk.path / "home", installed, scenario, deadline=PATIENT)
    rules = place.path / "filter"
    rules.write_text('to "./Maildir/"\n')
    rules.chmod(0o600)
    own(place.path)
    disk.sync()
    with place.input() as stdin:
        settings: dict[str, Any] = {**place.settings(), "stdin": stdin, "stdout": subprocess.PIPE}
        done = subprocess.run(command, check=False, timeout=60, **settings)
    assert done.returncode == 0, done
    assert _found(place.maildir / "new") == "1 whole"
    disk.cut()
    return _found(place.maildir / "new"), _found(place.maildir / "tmp")


def _found(directory: Path) -> str:
    contents = [path.read_bytes() for path in directory.iterdir()]
    if not contents:
        return "nothing"
    whole = sum(content.endswith(MESSAGE) for content in contents)
    return f"{len(contents)} {'whole' if whole == len(contents) else 'broken'}"
