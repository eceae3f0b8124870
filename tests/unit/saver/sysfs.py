"""A sysfs of files: block devices whose nodes are images, as the kernel shows them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Sysfs:
    """Directories that look like ``/sys`` and ``/dev``."""

    root: Path

    @property
    def sys(self) -> Path:
        return self.root / "sys"

    @property
    def dev(self) -> Path:
        return self.root / "dev"

    def write(self, path: str, text: str) -> None:
        place = self.sys / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"{text}\n")

    def add_disk(self, place: str, *, size_bytes: int = 1 << 20, number: str = "254:0", **files: str) -> Path:
        """Add a disk at a place below ``/sys/devices``; return its node, still to be made."""
        name = place.rsplit("/", 1)[-1]
        self.write(f"devices/{place}/dev", number)
        self.write(f"devices/{place}/size", str(size_bytes // 512))
        self.write(f"devices/{place}/ro", "0")
        (self.sys / "devices" / place / "holders").mkdir()
        for file, text in files.items():
            self.write(f"devices/{place}/{file.replace('__', '/')}", text)
        classes = self.sys / "class/block"
        classes.mkdir(parents=True, exist_ok=True)
        (classes / name).symlink_to(f"../../devices/{place}")
        self.dev.mkdir(exist_ok=True)
        return self.dev / name.replace("!", "/")
