"""Devices: their numbers, resources, PCI, disks, and what drivers added to the dump."""
