"""PCI devices, bus by bus."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from drgn import Object
from drgn.helpers.linux.pci import (
    PCI_EXP_TYPE,
    pci_bus_for_each_child,
    pci_bus_for_each_dev,
    pci_is_bridge,
    pci_name,
    pci_pcie_type,
)

from postpanic.analysis.cells import guarded
from postpanic.findings.table import Problem

__all__ = ["PciDevice", "read_pci_devices"]


@dataclass(frozen=True, slots=True)
class PciDevice:
    """A PCI device."""

    vaddr: int
    """``struct pci_dev *``."""
    name: str
    """Domain, bus, slot and function."""
    class_code: int
    """Class and subclass, 16 bits."""
    vendor: int
    device: int
    type: str


def read_pci_devices(bus: Object, problems: list[Problem]) -> Iterator[PciDevice]:
    """Walk the devices of a ``struct pci_bus *`` and of all buses below it."""
    for entry in guarded(_buses(bus), "PCI buses", problems):
        what = f"devices of the PCI bus at {entry.value_():#x}"
        for device in guarded(pci_bus_for_each_dev(entry), what, problems):
            yield PciDevice(
                int(device.value_()),
                pci_name(device),
                int(device.member_("class").value_()) >> 8,
                int(device.vendor.value_()),
                int(device.device.value_()),
                _type_name(device),
            )


def _buses(bus: Object) -> Iterator[Object]:
    pending = [bus]
    while pending:
        entry = pending.pop()
        yield entry
        pending += reversed(list(guarded(pci_bus_for_each_child(entry), "", [])))


def _type_name(device: Object) -> str:
    """Name the port type of a PCIe device; of others only whether it is a bridge."""
    if not device.pcie_cap.value_():
        return "BRIDGE" if pci_is_bridge(device) else "ENDPOINT"
    kind = pci_pcie_type(device)
    return kind.name if isinstance(kind, PCI_EXP_TYPE) else f"TYPE {kind:#x}"
