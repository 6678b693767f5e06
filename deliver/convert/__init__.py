"""Filters of other programs, as rules of ours."""
