"""
Runs on a host: loads, verifies, unloads as it is told, and says what came of it as one JSON object a line.

Words: ``load METHOD KERNEL INITRD`` (``-`` is no initramfs), ``verify KERNEL INITRD``, ``unload``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from postpanic.capture.host import Host
from postpanic.capture.kexec.command_line import build_command_line
from postpanic.capture.kexec.load import LoadRequest, load, unload
from postpanic.capture.kexec.verify import Expected, verify
from postpanic.errors import PostpanicError


def main(words: list[str]) -> dict[str, object]:
    host = Host.running()
    line = build_command_line(host.read_command_line(), host.machine).text
    verb, *rest = words
    if verb == "unload":
        return {"unloaded": unload(host), "loaded": host.read_crash_loaded()}
    if verb == "load":
        method, kernel, initrd = rest
        request = LoadRequest(Path(kernel), None if initrd == "-" else Path(initrd), line, method)  # type: ignore[arg-type]
        outcome = load(host, request)
        return {
            "method": outcome.method,
            "replaced": outcome.replaced,
            "remarks": outcome.remarks,
            "loaded": host.read_crash_loaded(),
        }
    kernel, initrd = rest
    expected = Expected(Path(kernel), None if initrd == "-" else Path(initrd), line)
    found = verify(host, expected)
    return {"outcome": found.outcome, "checks": {check.name: [check.outcome, check.evidence] for check in found.checks}}


try:
    report = main(sys.argv[1:])
except PostpanicError as exc:
    loaded = Host.running().read_crash_loaded()
    report = {"error": str(exc), "hint": exc.hint, "code": exc.code, "status": exc.exit_status, "loaded": loaded}
sys.stdout.write(json.dumps(report))
