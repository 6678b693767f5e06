"""The scanners: each adapter speaks one daemon's protocol and reports a Verdict. It reports; policy acts.

``address`` says where a daemon listens, ``pool`` asks several in turn within one deadline, and ``stream`` connects to
one. ``clamd``, ``spamd``, ``icap``, ``rspamd`` and ``command`` are the adapters, cheap to import. ``clamd_socket`` and
``spamd_connection`` are the packages they use, with the known faults of those mended; the first scan imports them.
"""
