"""What a configuration means on this machine: devices, drivers, files, addresses."""

from postpanic.capture.resolve.needs import FoundNetwork, ImageFile, Needs
from postpanic.capture.resolve.resolve import NetworkFinder, Resolved, list_servers, resolve

__all__ = ["FoundNetwork", "ImageFile", "Needs", "NetworkFinder", "Resolved", "list_servers", "resolve"]
