"""Dump file formats, behind one protocol of physical memory."""
