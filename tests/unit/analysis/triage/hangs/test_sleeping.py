"""Kinds of waits by the functions of a stack, and whose code asked for them."""

from __future__ import annotations

import pytest

from postpanic.analysis.stacks.code_index import Place
from postpanic.analysis.stacks.frames import Frame
from postpanic.analysis.triage.hangs.naming import function_of, module_of
from postpanic.analysis.triage.hangs.sleeping import find_own, is_own, kind_of_wait


def stack(*names: str) -> list[Frame]:
    frames = []
    for name in names:
        function, _, module = name.partition("@")
        frames.append(Frame(0, 0, 0, Place(function, 0, module, 1, 1)))
    return frames


@pytest.mark.parametrize(
    ("names", "kind", "service"),
    [
        (("__schedule", "schedule", "schedule_preempt_disabled", "__mutex_lock.constprop.0"), "mutex", ""),
        (("__schedule", "schedule", "rwsem_down_write_slowpath", "down_write"), "rwsem", "down_write"),
        (("__schedule", "schedule", "percpu_rwsem_wait", "__percpu_down_read"), "percpu-rwsem", "__percpu_down_read"),
        (("__schedule", "schedule_timeout", "__wait_for_common", "__flush_work"), "work", "__flush_work"),
        (("__schedule", "schedule_timeout", "__wait_for_common", "kthread_stop"), "task", "kthread_stop"),
        (("__schedule", "schedule_timeout", "__wait_for_common", "__wait_rcu_gp", "synchronize_rcu"), "rcu", ""),
        (("__schedule", "schedule_timeout", "__wait_for_common"), "completion", "__wait_for_common"),
        (("__schedule", "schedule", "io_schedule", "folio_wait_bit_common"), "io", "folio_wait_bit_common"),
        (("__schedule", "schedule", "schedule_timeout", "msleep"), "sleep", "msleep"),
        (("__schedule", "schedule", "futex_wait_queue", "futex_wait"), "futex", "futex_wait"),
        (("__schedule", "schedule"), "", "schedule"),
    ],
)
def test_the_services_of_a_stack_tell_the_wait(names: tuple[str, ...], kind: str, service: str) -> None:
    found = kind_of_wait([name.partition(".")[0] for name in (*names, "widget_read")])
    assert found[0] == kind
    if service:
        assert found[1] == service


def test_what_asked_to_wait_is_the_first_that_is_no_service() -> None:
    frames = stack("__schedule", "schedule", "__mutex_lock.constprop.0", "widget_read.isra.0@widget", "vfs_read")
    index, own = find_own(frames)
    assert (index, function_of(own), module_of(own)) == (3, "widget_read", "widget")


@pytest.mark.parametrize("name", ["mutex_lock", "schedule", "synchronize_rcu", "__const_udelay", "memcpy", "kthread"])
def test_services_do_no_work_of_their_own(name: str) -> None:
    assert not is_own(name)


def test_a_stack_of_services_has_nobody_to_name() -> None:
    index, own = find_own(stack("__schedule", "schedule", "worker_thread", "kthread"))
    assert (index, own) == (4, None)
    assert (function_of(own), module_of(own)) == ("", "")
