"""
The page about a crash: its facts, sections and evidence, read from the scene.

:func:`make_page` makes the value; ``report/html`` renders it.
"""

from postpanic.analysis.page.make import make_page

__all__ = ["make_page"]
