r"""
Kernel reports in any text: oopses, warnings, stalls, deadlocks, what the sanitizers found.

>>> from postpanic.evidence.oops import find_reports
>>> text = b"BUG: KASAN: slab-use-after-free in foo+0x1/0x2\nRead of size 8 at addr ffff888000000010 by task x/1\n"
>>> [(report.kind.value, report.variant, report.size_bytes) for report in find_reports(text)]
[('kasan', 'slab-use-after-free', 8)]
"""

from postpanic.evidence.oops.kinds import Family, Kind
from postpanic.evidence.oops.model import Access, Blame, Frame, Lock, Report, Section, Trace
from postpanic.evidence.oops.parse import find_reports, iterate_reports

__all__ = [
    "Access",
    "Blame",
    "Family",
    "Frame",
    "Kind",
    "Lock",
    "Report",
    "Section",
    "Trace",
    "find_reports",
    "iterate_reports",
]
