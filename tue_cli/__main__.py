"""`python -m tue_cli` is `tue`."""

from tue_cli.cli import main

main()
