# SPDX-License-Identifier: GPL-2.0
# Lines are closed, their memory goes to letters, and then all lines are drained.
# On one CPU: what another freed stays with that.
taskset 1 insmod relay.ko
taskset 1 act write linekeeper /proc/relay c
taskset 1 insmod mailbox.ko
act write drainer /proc/relay d
