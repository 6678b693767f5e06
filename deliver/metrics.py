"""What a service counts, in Prometheus' text format (https://prometheus.io/docs/instrumenting/exposition_formats/)."""

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from deliver.scan import Scanner
from deliver.values import Content, Envelope, Outcome, Verdict


class Metrics:
    """Counters since the start of the process. For the event loop's thread alone."""

    def __init__(self) -> None:
        self._messages: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._findings: Counter[tuple[str, str]] = Counter()
        self._seconds: dict[str, float] = {}
        self._scans: Counter[str] = Counter()
        self._waits = 0
        self._waited = 0.0
        self._in_work = 0

    def delivered(self, outcome: Outcome) -> None:
        """Count one recipient's message by what was done with it in the end."""
        for action in outcome.plan.actions[-1:]:
            self._messages[action.verb.value] += 1

    def failed(self, kind: str) -> None:
        """Count a delivery that failed, by its status code."""
        self._failures[kind] += 1

    def waited(self, seconds: float) -> None:
        """Count the wait for a turn."""
        self._waits += 1
        self._waited += seconds

    @contextlib.contextmanager
    def in_work(self) -> Iterator[None]:
        """Count a delivery as in work meanwhile."""
        self._in_work += 1
        try:
            yield
        finally:
            self._in_work -= 1

    def measured(self, scanner: Scanner) -> "Measured":
        """The scanner, counted and timed."""
        return Measured(scanner, self)

    def scanned(self, verdict: Verdict, seconds: float) -> None:
        """Count one scan, by the scanner's finding."""
        self._findings[verdict.scanner, verdict.finding.value] += 1
        self._seconds[verdict.scanner] = self._seconds.get(verdict.scanner, 0.0) + seconds
        self._scans[verdict.scanner] += 1

    def text(self, scanners: Sequence[Scanner]) -> str:
        """Everything counted, a sample a line. ``scanners`` are asked for their ``hits``."""
        lines: list[str] = []

        def family(name: str, kind: str, words: str, *series: tuple[str, Mapping[str, float]]) -> None:
            lines.extend((f"# HELP deliver_{name} {words}", f"# TYPE deliver_{name} {kind}"))
            for suffix, samples in series:
                lines.extend(f"deliver_{name}{suffix}{labels} {value}" for labels, value in samples.items())

        hits = {f'{{scanner="{one.name}"}}': one.hits for one in scanners if hasattr(one, "hits")}
        findings = {f'{{scanner="{name}",finding="{said}"}}': count for (name, said), count in self._findings.items()}
        scans = (("_sum", _by("scanner", self._seconds)), ("_count", _by("scanner", self._scans)))
        waits = (("_sum", {"": self._waited}), ("_count", {"": self._waits}))
        family("messages_total", "counter", "Messages by what was done with them.", ("", _by("action", self._messages)))
        family("failures_total", "counter", "Failures by status code.", ("", _by("status", self._failures)))
        family("scans_total", "counter", "Scans by scanner and finding.", ("", findings))
        family("scan_seconds", "summary", "Time that scans took.", *scans)
        family("scan_cache_hits_total", "counter", "Verdicts that cost no scan.", ("", hits))
        family("in_work", "gauge", "Deliveries in work.", ("", {"": self._in_work}))
        family("queue_wait_seconds", "summary", "Time that messages waited for their turn.", *waits)
        return "\n".join(lines) + "\n"


class Measured:
    """A scanner whose every scan is counted."""

    def __init__(self, scanner: Scanner, metrics: Metrics) -> None:
        self.name = scanner.name
        self.max_size = scanner.max_size
        self._scanner = scanner
        self._metrics = metrics

    async def scan(self, content: Content, envelope: Envelope) -> Verdict:
        """Scan, and count it."""
        begun = time.monotonic()
        verdict = await self._scanner.scan(content, envelope)
        self._metrics.scanned(verdict, time.monotonic() - begun)
        return verdict


def _by(label: str, counts: Mapping[str, float]) -> dict[str, float]:
    return {f'{{{label}="{value}"}}': count for value, count in counts.items()}
