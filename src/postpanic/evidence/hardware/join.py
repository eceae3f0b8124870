"""
Join the two views of one event: the kernel's report, and what hardware said of itself.

The report tells that the kernel died of a machine check; the registers beside it tell which part failed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import msgspec

from postpanic.evidence.hardware.model import HardwareError
from postpanic.evidence.oops.kinds import Family
from postpanic.evidence.oops.model import Report

__all__ = ["explain_reports"]


def explain_reports(reports: Sequence[Report], errors: Sequence[HardwareError]) -> list[Report]:
    """
    Give reports of hardware the details of the error that stands at the same place of the text.

    Parameters
    ----------
    reports : sequence of Report
    errors : sequence of HardwareError
        Of the same text, in its order.

    Returns
    -------
    list of Report
        All of them; those of :attr:`Family.HARDWARE` with ``hardware_what``, ``hardware_part``, ``hardware_place``,
        ``hardware_severity``, ``hardware_verdict`` and ``hardware_advice`` among their details, where there is such
        an error. Of several errors the one that the kernel panicked over counts, then the gravest.
    """
    offsets = [error.offset for error in errors]
    explained: list[Report] = []
    for report in reports:
        if report.family is Family.HARDWARE:
            first = bisect_left(offsets, report.offset)
            # An error that began before the report may reach into it; errors are a few lines long.
            around = errors[max(first - 8, 0) : bisect_left(offsets, report.end + 1)]
            same = [error for error in around if error.end >= report.offset]
            if same:
                error = max(same, key=lambda error: (error.is_panic, error.severity.rank))
                report = msgspec.structs.replace(report, details={**report.details, **_details(error)})
        explained.append(report)
    return explained


def _details(error: HardwareError) -> dict[str, str]:
    details = {
        "hardware_what": error.what,
        "hardware_part": error.part.value,
        "hardware_place": error.place,
        "hardware_severity": error.severity.value,
        "hardware_verdict": f"{error.verdict.value} (confidence {error.confidence.value}): {error.reason}",
        "hardware_advice": error.advice,
    }
    return {name: value for name, value in details.items() if value}
