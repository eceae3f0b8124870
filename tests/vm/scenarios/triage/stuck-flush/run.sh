# SPDX-License-Identifier: GPL-2.0
# Who waits for a queue is seen by khungtaskd; the item that it waits for sleeps where nobody looks.
insmod press.ko
echo 4 >/proc/sys/kernel/hung_task_timeout_secs
echo 1 >/proc/sys/kernel/hung_task_panic
act write editor /proc/press p
sleep 0.3
act write foreman /proc/press f
