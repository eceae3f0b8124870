# SPDX-License-Identifier: GPL-2.0
# Lines are closed, their memory goes to letters, and then all lines are drained.
insmod relay.ko
act write linekeeper /proc/relay c
taskset 1 insmod mailbox.ko
taskset 2 insmod mailbox.ko 2>/dev/null
act write drainer /proc/relay d
