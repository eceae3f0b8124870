"""
Start a program on the connection that is standard input, and cut that after a while, wherever it is.

::

    python cut_connection.py SECONDS PROGRAM [WORD …]

The program goes on with what it has begun, as one does whose client is gone.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import time


def main() -> None:
    deadline = time.monotonic() + float(sys.argv[1])
    ours, theirs = socket.socketpair()
    outside = socket.socket(fileno=os.dup(0))
    with subprocess.Popen(sys.argv[2:], stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=theirs.fileno()):
        theirs.close()
        while (left_s := deadline - time.monotonic()) > 0:
            readable, _, _ = select.select([outside, ours], [], [], left_s)
            for source in readable:
                data = source.recv(1 << 16)
                if not data:
                    deadline = 0.0
                (ours if source is outside else outside).sendall(data)
        for end in (outside, ours):
            end.shutdown(socket.SHUT_RDWR)


if __name__ == "__main__":
    main()
