"""What arms the machine at every boot and collects what a crash left: for systemd, OpenRC, local.d."""

from postpanic.capture.services.files import ServiceFile, ServiceKind, detect_kind, list_files
from postpanic.capture.services.install import (
    ServiceChange,
    disable,
    enable,
    find_enabled,
    reload_systemd,
    spell_command,
)

__all__ = [
    "ServiceChange",
    "ServiceFile",
    "ServiceKind",
    "detect_kind",
    "disable",
    "enable",
    "find_enabled",
    "list_files",
    "reload_systemd",
    "spell_command",
]
