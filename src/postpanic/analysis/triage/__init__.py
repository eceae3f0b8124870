"""
Triage: what happened, who is at fault, and how that can be seen in the dump.

:func:`triage_dump` and :func:`triage_log` ask every detector (``registry``,
``catalog``) that concerns the scene (``scene``), rank what they find
(``ranking``) and make one verdict of it (``verdict``).
"""

from postpanic.analysis.triage.scene import Fault, Scene, scene_of_dump, scene_of_log
from postpanic.analysis.triage.verdict import judge, triage_dump, triage_log

__all__ = ["Fault", "Scene", "judge", "scene_of_dump", "scene_of_log", "triage_dump", "triage_log"]
