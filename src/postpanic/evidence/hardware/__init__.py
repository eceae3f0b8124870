"""
Errors of the hardware: machine checks and firmware's records, out of texts and binary records.

>>> from postpanic.evidence.hardware import decode_status
>>> error = decode_status(0xBE00000000800400, vendor="Intel", family=6, model=85)
>>> error.severity.value, error.part.value, error.verdict.value
('fatal', 'processor', 'unclear')
"""

from postpanic.evidence.hardware.answer import hardware_answer
from postpanic.evidence.hardware.cper import (
    CperRecord,
    CperSection,
    decode_cper,
    decode_error_status,
    error_of_check,
    errors_of,
)
from postpanic.evidence.hardware.direct import decode_status
from postpanic.evidence.hardware.files import decode_record_file, is_record_file
from postpanic.evidence.hardware.join import explain_reports
from postpanic.evidence.hardware.mce_record import decode_mce_record
from postpanic.evidence.hardware.model import (
    Confidence,
    HardwareError,
    MachineCheck,
    Part,
    Severity,
    Source,
    Verdict,
)
from postpanic.evidence.hardware.text import find_hardware_errors, iterate_hardware_errors

__all__ = [
    "Confidence",
    "CperRecord",
    "CperSection",
    "HardwareError",
    "MachineCheck",
    "Part",
    "Severity",
    "Source",
    "Verdict",
    "decode_cper",
    "decode_error_status",
    "decode_mce_record",
    "decode_record_file",
    "decode_status",
    "error_of_check",
    "errors_of",
    "explain_reports",
    "find_hardware_errors",
    "hardware_answer",
    "is_record_file",
    "iterate_hardware_errors",
]
