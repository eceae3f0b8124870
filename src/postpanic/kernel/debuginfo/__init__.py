"""Debug information, synthesized from what a kernel carries in its own memory."""
