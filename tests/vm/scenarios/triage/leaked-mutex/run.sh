# SPDX-License-Identifier: GPL-2.0
# A process comes back with an error and a mutex, and exits; others want it.
insmod ferry.ko
echo 4 >/proc/sys/kernel/hung_task_timeout_secs
echo 1 >/proc/sys/kernel/hung_task_panic
act write agent /proc/ferry r
sleep 0.5
act write passenger /proc/ferry b &
act write commuter /proc/ferry b &
