"""The dump as commands see it; it is :mod:`postpanic.analysis.workspace`, where the engines below find it too."""

from postpanic.analysis.workspace import Workspace

__all__ = ["Workspace"]
