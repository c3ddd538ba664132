"""`python -m foldin` is the command `foldin`."""

from foldin.cli import app

app(prog_name="foldin")
