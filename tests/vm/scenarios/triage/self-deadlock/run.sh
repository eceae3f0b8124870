# SPDX-License-Identifier: GPL-2.0
# A process waits for itself; others wait for it.
insmod coffer.ko
echo 4 >/proc/sys/kernel/hung_task_timeout_secs
echo 1 >/proc/sys/kernel/hung_task_panic
act write auditor /proc/coffer a &
sleep 0.4
act write teller /proc/coffer t &
