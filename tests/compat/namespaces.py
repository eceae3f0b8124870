"""Two network namespaces with a cable between them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from postpanic.saver.plan import NetworkPlan, SavePlan
from postpanic.saver.plan_json import decode_plan, encode_plan

REPOSITORY = Path(__file__).parents[2]
IP = shutil.which("ip", path="/usr/sbin:/sbin:/usr/bin:/bin") or "ip"
DNSMASQ = shutil.which("dnsmasq", path="/usr/sbin:/usr/bin")
MAC = "52:54:00:aa:bb:01"


def find_missing() -> str:
    if os.getuid() != 0:
        return "network namespaces need root"
    if not Path(IP).exists() or DNSMASQ is None:
        return "iproute2 and dnsmasq-base are not installed"
    return "" if run(IP, "netns", "list", check=False).returncode == 0 else "no network namespaces here"


def run(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, check=check, capture_output=True, text=True, cwd=REPOSITORY, timeout=60)


@dataclass
class Net:
    """Two namespaces with a cable between them; ours has the capture kernel's part."""

    ours: str
    theirs: str
    base: Path

    def on_ours(self, *words: str) -> str:
        return run(IP, "-n", self.ours, *words).stdout

    def on_theirs(self, *words: str) -> str:
        return run(IP, "-n", self.theirs, *words).stdout

    def set_up(self, plan: NetworkPlan, times: int = 1) -> str:
        (self.base / "plan.json").write_bytes(encode_plan(SavePlan(network=plan)))
        words = [
            sys.executable,
            "-m",
            "tests.compat.network_script",
            "set-up",
            str(self.base / "plan.json"),
            str(self.base),
        ]
        return run(IP, "netns", "exec", self.ours, *words, str(times)).stdout

    def ping(self, address: str) -> bool:
        # An echo of TCP needs a server; a neighbour that answers is enough.
        program = f"import socket,sys; socket.create_connection(('{address}', 9999), 3)"
        done = run(IP, "netns", "exec", self.ours, sys.executable, "-c", program, check=False)
        return "refused" in done.stderr

    def addresses(self, name: str) -> set[str]:
        shown = json.loads(self.on_ours("-j", "address", "show", "dev", name))
        return {f"{each['local']}/{each['prefixlen']}" for each in shown[0]["addr_info"] if each["scope"] == "global"}

    def routes(self, *words: str) -> list[dict[str, str]]:
        found: list[dict[str, str]] = json.loads(self.on_ours("-j", *words, "route"))
        return found

    def find(self, *servers: str) -> tuple[NetworkPlan, str]:
        """Find out how servers are reached from our side: the plan, and the lines before it."""
        words = [sys.executable, "-m", "tests.compat.network_script", "find", *servers]
        said, brace, plan = run(IP, "netns", "exec", self.ours, *words).stdout.partition("{")
        network = decode_plan((brace + plan).encode()).network if brace else None
        return network or NetworkPlan(), said
