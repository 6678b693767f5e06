"""What rules cost in a running process: `make bench`, or `python bench/curves.py`.

Patterns that ruin a backtracking matcher, on bodies of growing size and in growing number; and header rules in a
running process.
"""

import datetime as dt
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(CHECKOUT)]

from measure import Spread, short, spread, table  # noqa: E402

from deliver.message import Message, Source, read_framing  # noqa: E402
from deliver.rules.evaluate import walk  # noqa: E402
from deliver.rules.load import load  # noqa: E402
from deliver.rules.model import Facts, Rule  # noqa: E402
from deliver.values import Envelope, unheard  # noqa: E402

ENVELOPE = Envelope("friend@example.net", "you@example.org", "/nowhere/Maildir")
HEAD = (
    b"From: A Friend <friend@example.net>\nTo: <you@example.org>\nSubject: Minutes of the meeting, as promised\n"
    b"Date: Sun, 22 Nov 2026 12:00:00 +0000\nMessage-ID: <1@example.net>\nList-Id: The list <some.list.example.org>\n"
    b"MIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\n\n"
)
LINEAR = 1.5
"""Growth of the time per byte, or per rule, that still passes for linear."""


def rules(conditions: Sequence[dict[str, Any]]) -> tuple[Rule, ...]:
    """Rules that only mark, so that all of them are tried, with these conditions."""
    loaded, problems = load([{"flag": "seen", "when": one} for one in conditions], "bench", user=True)
    if errors := [problem for problem in problems if not problem.warning]:
        raise SystemExit(f"bench: {errors[0].text}")
    return loaded


def cost(some: tuple[Rule, ...], content: bytes, times: int) -> Spread:
    """Milliseconds of CPU for one message, which is new each time: nothing decoded is kept."""
    used = []
    for _ in range(times + 1):
        source = Source.of(content)
        message = Message(source, read_framing(source.head))
        begun = time.process_time()
        walk(some, Facts(message, ENVELOPE, None, False, ()), lambda _score: False, unheard)
        used.append(1000 * (time.process_time() - begun))
    return spread(used[1:])  # RE2 builds part of its automaton at the first use


def evil(number: int) -> list[dict[str, Any]]:
    """So many different patterns that take exponential time where a matcher goes back: (a+)+$ and friends."""
    kinds = (r"(a+)+{}$", r"(a|a)*{}$", r"(a|aa)+{}$", r"([a-z]+)*{}$")
    return [{"body": {"regex": kinds[one % len(kinds)].format(f"b{one}")}} for one in range(number)]


def body(size: int) -> bytes:
    """Lines of what those patterns begin with, never with what they end in."""
    line = b"a" * 75 + b"!\n"
    return HEAD + line * max(1, size // len(line))


def growing(what: str, unit: str, points: Sequence[int], at: Callable[[int], Spread]) -> tuple[dict[str, Any], str]:
    """Measure at each point; the curve, and whether it is linear."""
    found = {point: at(point) for point in points}
    rows = [[f"{point:,}", str(one), f"{1000 * one.median / point:.3f}"] for point, one in found.items()]
    print(f"\n{what}\n\n{table((unit, 'CPU ms', f'us / {unit}'), rows)}", flush=True)
    first, last = points[-2], points[-1]
    growth = (found[last].median / last) / (found[first].median / first)
    verdict = "yes" if growth <= LINEAR else "no"
    return {"curve": {str(point): one._asdict() for point, one in found.items()}, "growth per unit": growth}, verdict


def main() -> None:
    """Run as a script."""
    times = 15 if os.environ.get("BENCH") == "full" else 3
    results: dict[str, Any] = {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load before": os.getloadavg(),
    }
    targets = []
    thousand = rules(evil(1000))
    curve, linear = growing(
        "1,000 body rules like (a+)+$, bodies of growing size",
        "byte",
        (1_000, 10_000, 100_000, 1_000_000),
        lambda size: cost(thousand, body(size), times),
    )
    results["size of the body"] = curve
    growth, most = short(curve["growth per unit"]), f"<= {LINEAR}"
    targets.append(["1,000 patterns like (a+)+$: growth per byte, 100 KB to 1 MB", growth, most, linear])
    curve, linear = growing(
        "Body rules like (a+)+$ in growing number, a body of 100 KB",
        "rule",
        (10, 100, 1000),
        lambda number: cost(rules(evil(number)), body(100_000), times),
    )
    results["number of body rules"] = curve
    growth = short(curve["growth per unit"])
    targets.append(["patterns like (a+)+$: growth per rule, 100 to 1,000", growth, most, linear])

    names = ("subject", "list-id", "from", "to")
    families: dict[str, list[dict[str, Any]]] = {
        "globs on four fields": [{names[one % 4]: f"*nothing {one}*"} for one in range(1000)],
        "addresses": [{"from": f"nobody{one}@example.com"} for one in range(1000)],
        "regex on the subject": [{"subject": {"regex": f"^nothing {one} here$"}} for one in range(1000)],
        "(a+)+$ on the subject": [{"subject": {"regex": f"(a+)+{one}$"}} for one in range(1000)],
    }
    rows = []
    results["1,000 header rules"] = {}
    for name, conditions in families.items():
        begun = time.process_time()
        loaded = rules(conditions)
        load_ms = 1000 * (time.process_time() - begun)
        one = cost(loaded, HEAD + b"Hello.\n", 4 * times + 1)
        results["1,000 header rules"][name] = {"load ms": load_ms, **one._asdict()}
        rows.append([name, str(one), short(load_ms)])
        reached = "yes" if one.median < 5 else "no"
        targets.append([f"1,000 header rules, {name}: CPU ms per message", str(one), "< 5", reached])
    head = ("", "CPU ms / message", "load ms")
    print(f"\n1,000 header rules that do not match, in a running process\n\n{table(head, rows)}")
    print(f"\nTo reach\n\n{table(('', 'measured', 'to reach', 'reached'), targets)}")
    results["to reach"] = targets
    path = CHECKOUT / "bench" / "results" / f"{results['date'][:16].replace(':', '')}-curves.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\nbench: {path.relative_to(CHECKOUT)}")


if __name__ == "__main__":
    main()
