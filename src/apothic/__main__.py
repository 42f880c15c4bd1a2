"""`python -m apothic` is the command `apothic`."""

from apothic.cli.main import run

run()
