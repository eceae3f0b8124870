"""
The kernel log, read from memory with nothing but VMCOREINFO.

:func:`read_log` reads the lock-less ring buffer (since 5.10) or the log of
variable-length records before it.
"""

from postpanic.kernel.printk.read import read_log
from postpanic.kernel.printk.records import LogRecord, RecordState, caller_name

__all__ = ["LogRecord", "RecordState", "caller_name", "read_log"]
