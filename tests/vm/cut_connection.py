"""
Start a program on the connection that is standard input, and cut that after a while, wherever it is.

::

    python cut_connection.py MESSAGES LOG PROGRAM [WORD …]

It is cut as soon as so much has come, by the number of times that something
came; a byte in the log says so. The program goes on with what it has begun, as one does whose client is gone.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from pathlib import Path


def main() -> None:
    left = int(sys.argv[1])
    ours, theirs = socket.socketpair()
    outside = socket.socket(fileno=os.dup(0))
    with subprocess.Popen(sys.argv[3:], stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=theirs.fileno()):
        theirs.close()
        is_open = True
        while left and is_open:
            readable, _, _ = select.select([outside, ours], [], [])
            for source in readable:
                data = source.recv(1 << 16)
                is_open = is_open and bool(data)
                left -= source is outside
                (ours if source is outside else outside).sendall(data)
        if is_open:
            with Path(sys.argv[2]).open("ab") as log:
                log.write(b".")
        for end in (outside, ours):
            end.shutdown(socket.SHUT_RDWR)


if __name__ == "__main__":
    main()
