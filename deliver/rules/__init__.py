"""The rule language of mailfilter.toml: read, compiled and applied."""
