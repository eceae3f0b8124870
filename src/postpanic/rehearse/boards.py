r"""
The kinds of machines there are to rehearse on: what QEMU needs to be one, and what its kernel is told.

Sources: QEMU's manual (system emulator targets); ``Documentation/arch/x86/boot.rst`` (``HdrS``),
``Documentation/arch/arm64/booting.rst`` (``ARM\\x64``).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from postpanic.capture.kexec.device_tree import decode_tree, encode_tree
from postpanic.errors import CorruptError, NotReadyError, UsageError

__all__ = ["BOARDS", "Board", "find_board", "read_device_tree"]

TREE_LIMIT_BYTES = 2 << 20
"""What a kernel for arm64 takes of a device tree (``MAX_FDT_SIZE``, ``arch/arm64/include/asm/boot.h``)."""


@dataclass(frozen=True)
class Board:
    """
    A kind of machine.

    Attributes
    ----------
    program, package : str
        QEMU's, and Debian's name of what has it.
    machine, cpu : str
        Of its ``-M`` and ``-cpu``.
    console : str
        What a kernel calls its serial port.
    words : str
        For every kernel there.
    kernel_magic : tuple of int and bytes
        Offset in a bootable file, and what is there.
    kernel_kind : str
        What such a file is called.
    takes_dtb : bool
        Whether it is described by a device tree.
    """

    program: str
    package: str
    machine: str
    cpu: str
    console: str
    words: str
    kernel_magic: tuple[int, bytes]
    kernel_kind: str
    takes_dtb: bool

    @property
    def command_line(self) -> str:
        """What every kernel there is told."""
        return f"console={self.console} {self.words}".strip()

    def check_kernel(self, path: Path) -> None:
        """
        Make sure that a file is a kernel for this board.

        Raises
        ------
        NotReadyError
            If it is not, or cannot be read.
        """
        offset, magic = self.kernel_magic
        try:
            with path.open("rb") as stream:
                head = stream.read(offset + len(magic))
        except OSError as exc:
            hint = "run it as root" if isinstance(exc, PermissionError) else ""
            raise NotReadyError((exc.strerror or str(exc)).lower(), where=str(path), hint=hint) from exc
        self.check_content(head, path)

    def check_content(self, content: bytes, path: Path) -> None:
        """
        Make sure that the content of a file, or what was packed in it, is a kernel for this board.

        Raises
        ------
        NotReadyError
            If it is not.
        """
        offset, magic = self.kernel_magic
        found = content[offset : offset + len(magic)]
        if found != magic:
            raise NotReadyError(
                f"is no {self.kernel_kind}: at {offset:#x} is {found.hex()}, not {magic.hex()}", where=str(path)
            )


# A kernel that looks whether its timer ticks panics where the machine is emulated on a busy host.
BOARDS = {
    "x86_64": Board(
        program="qemu-system-x86_64",
        package="qemu-system-x86",
        machine="pc",
        cpu="max,la57=off",
        console="ttyS0",
        words="no_timer_check",
        kernel_magic=(0x202, b"HdrS"),
        kernel_kind="bzImage of x86",
        takes_dtb=False,
    ),
    "aarch64": Board(
        program="qemu-system-aarch64",
        package="qemu-system-arm",
        machine="virt,gic-version=3",
        # Emulated, the architecture's own way of signing pointers takes half of all time.
        cpu="max,pauth-impdef=on",
        console="ttyAMA0",
        words="",
        kernel_magic=(0x38, b"ARM\x64"),
        kernel_kind="Image of arm64",
        takes_dtb=True,
    ),
}


def find_board(machine: str, dtb: Path | None = None) -> Board:
    """
    Find the board for an architecture.

    Parameters
    ----------
    machine : str
        As ``uname -m`` has it.
    dtb : Path, optional
        A device tree, if one is to be used.

    Raises
    ------
    NotReadyError
        If there is none.
    UsageError
        If it takes no device tree.
    """
    board = BOARDS.get(machine)
    if board is None:
        raise NotReadyError(
            f"a machine of {machine} cannot be rehearsed yet, only {', '.join(BOARDS)}",
            hint="postpanic crash-test proves it on the machine itself",
        )
    if dtb is not None and not board.takes_dtb:
        raise UsageError(f"--dtb {dtb}: a machine of {machine} is not described by a device tree")
    return board


def read_device_tree(path: Path) -> bytes:
    """
    Read a device tree, without the room that it has at its end.

    QEMU doubles what it is given, room and all: a kernel would refuse a tree
    that QEMU itself wrote (``dumpdtb``) before it could print anything.

    Raises
    ------
    NotReadyError
        If it cannot be read.
    CorruptError
        If it is none, damaged, or longer than a kernel takes.
    """
    try:
        with path.open("rb") as stream:
            raw = stream.read(2 * TREE_LIMIT_BYTES)
    except OSError as exc:
        raise NotReadyError((exc.strerror or str(exc)).lower(), where=str(path)) from exc
    try:
        packed = encode_tree(decode_tree(raw))
    except CorruptError as exc:
        raise CorruptError(exc.message, where=str(path), hint=exc.hint) from exc
    if 2 * len(packed) > TREE_LIMIT_BYTES:
        raise CorruptError(
            f"a device tree of {len(packed)} bytes: an emulated board takes {TREE_LIMIT_BYTES // 2}", where=str(path)
        )
    return packed
