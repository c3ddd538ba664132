"""The status page: what the daemon does, what it merged and how it went, for people with a browser."""
