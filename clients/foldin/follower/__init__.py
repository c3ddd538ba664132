"""Keeping an inference host at the version that an alias names; README.md says what it promises."""
