# SPDX-License-Identifier: GPL-2.0
insmod lift.ko
echo 4 >/proc/sys/kernel/hung_task_timeout_secs
echo 1 >/proc/sys/kernel/hung_task_panic
act write tenant /proc/lift e
act write tenant /proc/lift e
act write caller /proc/lift r &
sleep 0.2
act write plumber /proc/lift r &
