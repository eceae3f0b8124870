"""``kmem``: what kernel memory is used for."""

from postpanic.analysis.commands.memory.kmem.command import kmem

__all__ = ["kmem"]
