"""
What a guest printed, with the lines of its programs in one piece.

A serial port sends what programs print byte by byte out of a buffer, and a
message of the kernel at once and as a whole, also where that is in the middle
of a program's line (``serial8250_console_write()`` in
``drivers/tty/serial/8250/8250_port.c``, ``pl011_console_write()`` in
``drivers/tty/serial/amba-pl011.c``): the rest of the line follows later.
"""

from __future__ import annotations

from postpanic.evidence.lines import find_message

__all__ = ["join_lines"]

_STARTED = "[    0.000000]"
"""What another kernel's first messages begin with: nobody goes on with a line of before."""


def join_lines(text: str) -> str:
    r"""
    Put a message of the kernel that stands within a line before that line.

    A message without its time (``printk.time=0``) cannot be told from what a program prints, and stays where it is.

    Parameters
    ----------
    text : str
        As much of a console as there is yet. Lines that are whole stay as they are when more comes.

    >>> join_lines("saved, lev[    2.250000] usb 1-1: reset\n[    2.260000] hub 1-0\nel 31\n")
    '[    2.250000] usb 1-1: reset\n[    2.260000] hub 1-0\nsaved, level 31\n'
    """
    *lines, rest = text.split("\n")
    joined: list[str] = []
    begun = ""
    for line in lines:
        place = find_message(line) if "[" in line else -1
        if place < 0:
            joined.append(begun + line)
            begun = ""
            continue
        begun += line[:place]
        message = line[place:]
        if begun and message.startswith(_STARTED):
            joined.append(begun)
            begun = ""
        joined.append(message)
    return "\n".join([*joined, begun + rest])
