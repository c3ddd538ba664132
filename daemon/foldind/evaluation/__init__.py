"""Evaluation: streams of checkpoints through merge rules, scored by a command of the user's; `foldind evaluate`."""
