# SPDX-License-Identifier: GPL-2.0
insmod windmill.ko
echo 4 >/proc/sys/kernel/hung_task_timeout_secs
act write miller /proc/windmill stop &
sleep 0.9
act write apprentice /proc/windmill stop &
sleep 0.3
echo 1 >/proc/sys/kernel/hung_task_panic
