"""Redaction: secrets are overwritten in the pages that are written, by the kernel's own types."""

from postpanic.pages.redaction.erasure import ERASED_BYTE, Erasure, RequestRecord
from postpanic.pages.redaction.plan import plan_erasure

__all__ = ["ERASED_BYTE", "Erasure", "RequestRecord", "plan_erasure"]
