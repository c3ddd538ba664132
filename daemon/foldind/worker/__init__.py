"""The worker: one warm process beside the daemon that does the arithmetic, and the daemon's end of the pipe to it."""
