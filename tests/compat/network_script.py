"""Run in a network namespace by the tests: set up what a plan says, or find out how servers are reached."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from postpanic.capture.network import plan_network
from postpanic.errors import PostpanicError
from postpanic.saver.network.setup import set_up_network
from postpanic.saver.plan import SavePlan
from postpanic.saver.plan_json import decode_plan, encode_plan


def say(line: str) -> None:
    sys.stdout.write(line + "\n")


def set_up(plan_path: str, root: str, times: str) -> None:
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


def find(*servers: str) -> None:
    try:
        found = plan_network(servers, nameservers=("192.0.2.53",))
    except PostpanicError as exc:
        say(f"ERROR {exc}")
    else:
        say(f"MODULES {' '.join(found.modules)}")
        say(f"PATHS {' '.join(found.sysfs_paths)}")
        sys.stdout.write(encode_plan(SavePlan(network=found.plan)).decode())


if __name__ == "__main__":
    if sys.argv[1] == "set-up":
        set_up(*sys.argv[2:])
    else:
        find(*sys.argv[2:])
