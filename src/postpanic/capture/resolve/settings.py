"""What all targets have in common, as the plan has it."""

from __future__ import annotations

from typing import Literal, TypedDict, cast

from postpanic.capture.config.model import DumpConfig
from postpanic.capture.config.targets import KeptSettings, TargetSettings
from postpanic.saver.plan import RetentionPlan

__all__ = ["Settings", "retention_of", "settings_of"]


class Settings(TypedDict):
    """Keys of every plan of a target."""

    dump_levels: tuple[int, ...]
    compression: Literal["zstd", "none"]
    compression_level: int | None
    limit_bytes: int
    attempts: int
    timeout_s: float


def settings_of(target: TargetSettings, dump: DumpConfig) -> Settings:
    """Put together what the target says and, where it says nothing, what ``[dump]`` does."""
    return Settings(
        dump_levels=dump.level if target.level is None else target.level,
        compression=cast(
            "Literal['zstd', 'none']", dump.compression if target.compression is None else target.compression
        ),
        compression_level=dump.compression_level if target.compression_level is None else target.compression_level,
        limit_bytes=target.limit_bytes,
        attempts=target.attempts,
        timeout_s=target.timeout_s,
    )


def retention_of(target: KeptSettings) -> RetentionPlan:
    """Say which old dumps may go."""
    return RetentionPlan(
        keep_count=target.keep_count, keep_bytes=target.keep_bytes, min_free_bytes=target.min_free_bytes
    )
