"""Save a dump into a directory of a file system on a block device, which is mounted for that."""

from __future__ import annotations

import os
from pathlib import Path

from postpanic.dumps.write_calls import as_output_error
from postpanic.saver.blocks import BlockDevice, BlockFinder
from postpanic.saver.mounting import mount_writable, sync_file_system
from postpanic.saver.plan import FilePlan
from postpanic.saver.targets.directory import DirectoryTarget, resolve_inside
from postpanic.saver.targets.mount_points import MOUNTS_DIR, leave_mount_point, make_mount_point

__all__ = ["FileTarget"]

_WAIT_S = 30.0


class FileTarget(DirectoryTarget):
    """
    A directory of a file system on a block device.

    Parameters
    ----------
    finder : BlockFinder, optional
        Finds the device; one of the saver's own knows how to bind what turns up.
    wait_s : float
        For the device to turn up.
    mounts_dir : Path
        Where it is mounted, in a directory of its own.
    """

    def __init__(
        self,
        plan: FilePlan,
        *,
        finder: BlockFinder | None = None,
        wait_s: float = _WAIT_S,
        mounts_dir: Path = MOUNTS_DIR,
    ) -> None:
        super().__init__(Path(plan.path), name=plan.name or f"file {plan.path}", retention=plan.retention)
        self._plan = plan
        self._finder = finder or BlockFinder()
        self._wait_s = wait_s
        self._mounts_dir = mounts_dir
        self._mount_point: Path | None = None
        self._device = ""

    def open(self, dump_name: str) -> None:
        """Find the device, mount it, and make the directory of a new dump."""
        self.close()
        devices = self._find()
        self._device = devices[0].name
        point = make_mount_point(self._mounts_dir, self.name)
        mount_writable(
            str(devices[0].path),
            point,
            self._plan.filesystem,
            self._mount_options(devices),
            timeout_s=self._plan.timeout_s,
            where=self.name,
        )
        self._mount_point = point
        try:
            self._root = resolve_inside(point, self._plan.path)
        except OSError as exc:
            raise as_output_error(exc, self.name, f"find {self._plan.path}") from exc
        super().open(dump_name)

    @property
    def place(self) -> str:
        """The dump's directory in its file system, and the device."""
        if not self._dump_name or self._mount_point is None:
            return ""
        return f"/{self._directory.relative_to(self._mount_point)} on {self._device}"

    def commit(self) -> None:
        """Rename the dump, and let all of the file system reach the disk."""
        super().commit()
        try:
            fd = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                sync_file_system(fd)
            finally:
                os.close(fd)
        except OSError as exc:
            raise as_output_error(exc, self.name, "sync") from exc

    def close(self) -> None:
        """Unmount."""
        super().close()
        point, self._mount_point = self._mount_point, None
        if point is not None:
            leave_mount_point(point, timeout_s=self._plan.timeout_s)

    def _find(self) -> list[BlockDevice]:
        if self._plan.filesystem == "btrfs":
            return self._finder.find_all(self._plan.device, wait_s=self._wait_s, where=self.name)
        return [self._finder.find(self._plan.device, wait_s=self._wait_s, where=self.name)]

    def _mount_options(self, devices: list[BlockDevice]) -> str:
        """Add the other devices of a file system that is on several, which btrfs does not look for."""
        others = [f"device={device.path}" for device in devices[1:]]
        return ",".join([option for option in (self._plan.options, *others) if option])
