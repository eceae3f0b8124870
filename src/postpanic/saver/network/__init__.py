"""The network of the capture kernel: made by our own hands, as there is no ip(8), no udev and no DHCP client."""
