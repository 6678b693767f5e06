"""The verdict of a scanner upstream, read from the header line it left ([spam] trust-header)."""

import re

from deliver.headers import decode
from deliver.values import Content, Envelope, Finding, Verdict

_POINTS = re.compile(r"\b(?:score|hits)=(-?[0-9]+(?:\.[0-9]+)?)", re.IGNORECASE)
_REQUIRED = re.compile(r"\brequired=(-?[0-9]+(?:\.[0-9]+)?)", re.IGNORECASE)
_TESTS = re.compile(r"\btests=([A-Z0-9_, ]+)")


class TrustedHeader:
    """Reads "Yes, score=15.1 required=5.0 tests=A,B" as SpamAssassin writes it (Mail::SpamAssassin::Conf, add_header).

    Only the topmost such line counts: those below it were there before the trusted scanner.
    """

    max_size = 2**63

    def __init__(self, name: str) -> None:
        self.name = name

    async def scan(self, content: Content, envelope: Envelope) -> Verdict:
        """The verdict of the header line; skipped where there is none or it says neither yes nor no."""
        del envelope
        values = content.fields(self.name)
        said = decode(values[0]) if values else ""
        decision = re.match(r"(yes|no)\b", said, re.IGNORECASE)
        if decision is None:
            return Verdict(self.name, Finding.SKIPPED, reason=f"no {self.name} line" if not values else "not yes or no")
        score, required, tests = (pattern.search(said) for pattern in (_POINTS, _REQUIRED, _TESTS))
        names = re.split(r"[ ,]+", tests[1].strip(" ,")) if tests else []
        return Verdict(
            self.name,
            Finding.SPAM if decision[1].lower() == "yes" else Finding.CLEAN,
            names=tuple(name for name in names if name not in ("", "none", "autolearn")),
            score=float(score[1]) if score else None,
            required=float(required[1]) if required else None,
        )
