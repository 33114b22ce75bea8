"""`python -m tue_cli` is `tue`."""

import sys
from typing import Any

from tue_cli.errors import ExitCode


def main() -> Any:
    """Run `tue`; Ctrl-C ends it while it is still loaded as it does later."""
    try:
        from tue_cli.cli import main as run

        return run()
    except KeyboardInterrupt:
        if sys.stderr is not None:
            sys.stderr.write("Interrupted.\n")
        sys.exit(ExitCode.INTERRUPTED)


if __name__ == "__main__":
    main()
