# SPDX-License-Identifier: GPL-2.0
# A process waits for a frozen file system for ever; khungtaskd panics on its behalf.
echo 5 >/proc/sys/kernel/hung_task_timeout_secs
echo 1 >/proc/sys/kernel/hung_task_panic
fsfreeze --freeze /mnt/loop
crash write frozen-writer /mnt/loop/never &
