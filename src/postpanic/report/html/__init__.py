"""A page about a crash as one HTML file that needs nothing else: style, script and pictures are in it."""

from postpanic.report.html.redaction import REDACTIONS, Redactor
from postpanic.report.html.render import render_page

__all__ = ["REDACTIONS", "Redactor", "render_page"]
