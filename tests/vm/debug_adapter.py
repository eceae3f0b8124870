"""A client of the Debug Adapter Protocol, which editors speak."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence

__all__ = ["AdapterClient"]


class AdapterClient:
    """A client of the Debug Adapter Protocol, as editors have one."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=dict(environment),
        )
        self._sent = 0

    def send(self, command: str, **arguments: object) -> int:
        assert self._process.stdin is not None
        self._sent += 1
        message = {"seq": self._sent, "type": "request", "command": command, "arguments": arguments}
        body = json.dumps(message).encode()
        self._process.stdin.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        self._process.stdin.flush()
        return self._sent

    def receive(self, number: int) -> dict[str, object]:
        """Wait for the response to a request; events are passed over."""
        assert self._process.stdout is not None
        while True:
            header = self._process.stdout.readline()
            assert header, "the adapter has gone"
            if not header.startswith(b"Content-Length: "):
                continue
            self._process.stdout.readline()
            message: dict[str, object] = json.loads(self._process.stdout.read(int(header.split()[1])))
            if message.get("request_seq") == number:
                assert message["success"], message
                return message

    def ask(self, command: str, **arguments: object) -> dict[str, list[dict[str, object]]]:
        body = self.receive(self.send(command, **arguments)).get("body")
        return body if isinstance(body, dict) else {}

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
