"""What can go wrong, as the MTA must hear it.

    DeliverError
    └── Deferred        try again later (75); every unforeseen error is treated as this one
        └── NotConfigured   the configuration is missing or wrong

What bounces is no error but a plan: over quota, a rule or setting that says so, a mail loop.

Each carries a public sentence, which strangers may read, and a private reason, which only the log shows.
"""


class DeliverError(Exception):
    """``line`` is public: an RFC 3463 status code and a sentence. ``detail`` is for the log."""

    def __init__(self, line: str, detail: str = "") -> None:
        super().__init__(detail or line)
        self.line = line
        self.detail = detail


class Deferred(DeliverError):
    """A failure that may pass."""

    def __init__(self, detail: str = "", line: str = "4.3.0 Temporary failure") -> None:
        super().__init__(line, detail)


class NotConfigured(Deferred):
    """No usable configuration. ``detail`` has one "FILE:LINE: words" a line, every error at once."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail, "4.3.5 Mail filter is not configured")
