"""The debug information of arm64 kernels: it judges what is found without any."""

from __future__ import annotations

from postpanic.rehearse.kernels import DebugInfo, KernelStore
from tests.vm.arm64 import KERNELS, MODULES, Arm64Dump
from tests.vm.lab import Lab

__all__ = ["fetch_debug_info"]


def fetch_debug_info(lab: Lab, key: str, dump: Arm64Dump) -> DebugInfo:
    """Return the debug information of a dump's kernel, fetched when first asked for."""
    store = KernelStore(lab.cache_dir)
    return store.fetch_debug_info(KERNELS[key], dump.kernel, [*MODULES, "virtio", "virtio_ring"])
