"""Memory runs out: at start, in the middle, once or for good. The answer is 75 or 0, and 0 means that it is there."""

import random
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fault_cases
import pytest
import report
import servers
from fault_cases import SCENARIOS, Place, Scanners, Scenario
from installed import install_once  # noqa: F401 - the fixture `installed`
from test_faults_sweep import FULL, SEED

pytestmark = pytest.mark.faults

# In MB (10**6 bytes). Below some 30 the interpreter does not start, above some 100 nothing fails.
SPACES = [*range(30, 60, 2), *range(60, 130, 10)]
TRIES = 1500 if FULL else 120
# Allocations of a whole delivery, about; later ones never come, and the delivery succeeds.
ALLOCATIONS = 300_000

DRIVER = """\
import _testcapi, sys
start, stop = int(sys.argv.pop(1)), int(sys.argv.pop(1))
from deliver.__main__ import main
_testcapi.set_nomemory(start, stop)
main()
"""


@pytest.fixture(scope="module")
def scanning() -> Iterator[Scanners]:
    with servers.scratch() as directory, fault_cases.scanners(directory) as found:
        yield found


def scenarios() -> list[Scenario]:
    wanted = {"inbox", "from a pipe", "new folder", "quarantine", "quota"}
    return [scenario for scenario in SCENARIOS if scenario.name in wanted]


def deliver(place: Place, command: list[str]) -> int:
    with place.input() as stdin:
        settings: dict[str, Any] = {**place.settings(), "stdin": stdin, "capture_output": False}
        done = subprocess.run(
            command, check=False, timeout=120, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **settings
        )
    return done.returncode


def test_a_small_address_space(scratch: Path, installed: Path, scanning: Scanners) -> None:
    """RLIMIT_AS, from what cannot start a Python to what is enough, through the launcher."""
    cases = [(scenario, space) for scenario in scenarios() for space in SPACES]

    def attempt(case: tuple[Scenario, int]) -> tuple[int, list[str]]:
        scenario, space = case
        place = Place(scratch / f"{scenario.name} {space}".replace(" ", "-"), installed, scenario, scanning)
        code = deliver(place, ["prlimit", f"--as={space * 10**6}", *place.command])
        complaints = place.complaints(code, killed=True)
        shutil.rmtree(place.path)
        return code, complaints if code in {0, 75} else [f"exit {code}"]

    servers.needs("prlimit")
    with ThreadPoolExecutor(fault_cases.workers()) as pool:
        results = list(pool.map(attempt, cases))
    codes = [code for code, _ in results]
    report.say(f"address space of {SPACES[0]} to {SPACES[-1]} MB: {len(codes)} tried; exit 0: {codes.count(0)}, 75: {codes.count(75)}")
    wrong = {f"{case[0].name}, {case[1]} MB": said for case, (_, said) in zip(cases, results, strict=True) if said}
    assert not wrong, fault_cases.described(wrong)
    assert {0, 75} == set(codes), "the limits are all too high or too low"


@pytest.mark.parametrize("forever", [False, True], ids=["once", "for-ever"])
def test_an_allocation_fails(scratch: Path, installed: Path, scanning: Scanners, forever: bool) -> None:
    """_testcapi.set_nomemory, as SQLite tests itself: the Nth allocation, for N drawn evenly on a logarithmic scale.

    For ever, CPython may spin where it cannot even make an exception: the CPU limit ends that (here 1 s, else 900 s).
    """
    real = installed / "lib" / "deliver" / "bin" / "python"
    if not real.exists():  # the launcher knows better
        text = (installed / "bin" / "deliver").read_text()
        real = Path(text.partition("\nhome=")[2].partition("\n")[0]) / "bin" / "python"
    if subprocess.run([real, "-I", "-c", "import _testcapi"], check=False, capture_output=True).returncode != 0:
        servers.lacking("this Python has no _testcapi (Debian: libpython3.11-stdlib)")
    driver = scratch / "driver.py"
    driver.write_text(DRIVER)
    home = scratch / "home"
    (home / "bin").mkdir(parents=True)
    python = home / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{real}" -I -X utf8 "{driver}" $NTH\n')
    python.chmod(0o755)
    launcher = scratch / "deliver"
    lines = (installed / "bin" / "deliver").read_text().splitlines(keepends=True)
    launcher.write_text("".join(f"home={home}\n" if line.startswith("home=") else line for line in lines))
    launcher.chmod(0o755)
    for path in (home, home / "bin"):
        path.chmod(0o755)

    draw = random.Random(f"{SEED} {forever}")
    kinds = scenarios()
    count = TRIES // 4 if forever else TRIES
    cases = [(kinds[index % len(kinds)], int(ALLOCATIONS ** draw.random())) for index in range(count)]

    def attempt(number: int) -> tuple[int, list[str]]:
        scenario, nth = cases[number]
        place = Place(scratch / f"place{number}", installed, scenario, scanning)
        words = f"NTH={nth} {0 if forever else nth + 1}"
        code = deliver(place, ["prlimit", "--cpu=1", "env", words, str(launcher)])
        complaints = place.complaints(code, killed=True)
        shutil.rmtree(place.path)
        return code, complaints if code in {0, 75} else [f"exit {code}"]

    with ThreadPoolExecutor(fault_cases.workers()) as pool:
        results = list(pool.map(attempt, range(count)))
    codes = [code for code, _ in results]
    how = "and all later allocations fail" if forever else "allocation fails"
    report.say(f"the Nth {how}: {count} tried; exit 0: {codes.count(0)}, 75: {codes.count(75)}")
    wrong = {f"{scenario.name}, allocation {nth}": said for (scenario, nth), (_, said) in zip(cases, results, strict=True) if said}
    assert not wrong, fault_cases.described(wrong)
    assert 75 in codes
