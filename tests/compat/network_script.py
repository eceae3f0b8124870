"""Run in a network namespace by the tests: set up what a plan says, and print what came of it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from postpanic.errors import PostpanicError
from postpanic.saver.network.setup import set_up_network
from postpanic.saver.plan_json import decode_plan


def say(line: str) -> None:
    sys.stdout.write(line + "\n")


def main() -> None:
    plan_path, root, times = sys.argv[1:]
    plan = decode_plan(Path(plan_path).read_bytes())
    assert plan.network is not None
    started = time.monotonic()
    for _ in range(int(times)):
        try:
            set_up_network(plan.network, say, root=Path(root))
        except PostpanicError as exc:
            say(f"ERROR {exc}")
            if exc.hint:
                say(f"HINT {exc.hint}")
    say(f"TOOK {time.monotonic() - started:.1f}")


if __name__ == "__main__":
    main()
