"""Missing cells and problems: :mod:`postpanic.analysis.cells`, where the engines find them too."""

from postpanic.analysis.cells import LIMIT, absent, cell, decode, guarded, problem

__all__ = ["LIMIT", "absent", "cell", "decode", "guarded", "problem"]
