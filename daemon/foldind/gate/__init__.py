"""The gate: a command of the operator's that every new version has to pass before an alias names it."""
