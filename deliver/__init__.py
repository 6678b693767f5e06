"""A content-filtering mail delivery agent for Maildirs."""

__version__ = "0.1.0"
