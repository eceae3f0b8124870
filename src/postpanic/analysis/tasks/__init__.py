"""
Tasks as values: what ``struct task_struct`` says of each, read for thousands at once.

:func:`read_facts` reads; a :class:`TaskFacts` decodes when it is asked.
"""

from postpanic.analysis.tasks.facts import TaskFacts, read_all_facts, read_facts
from postpanic.analysis.tasks.lists import possible_cpus, read_tasks
from postpanic.analysis.tasks.memory_use import MemoryUse, read_memory_use
from postpanic.analysis.tasks.states import STATE_NAMES, state_code, state_words

__all__ = [
    "STATE_NAMES",
    "MemoryUse",
    "TaskFacts",
    "possible_cpus",
    "read_all_facts",
    "read_facts",
    "read_memory_use",
    "read_tasks",
    "state_code",
    "state_words",
]
