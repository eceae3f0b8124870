"""Run the command line: ``python -m postpanic``."""

from __future__ import annotations

import sys

from postpanic.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
