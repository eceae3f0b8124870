"""Servers that stand in for those of the targets: started by the virtual machine's network, one for each connection."""
