# SPDX-License-Identifier: GPL-2.0
# One CPU loops with a lock held and keeps its own watchdog quiet; the other CPU's watchdog barks.
insmod conveyor.ko
echo 3 >/proc/sys/kernel/watchdog_thresh
echo 1 >/proc/sys/kernel/softlockup_panic
echo 120 >/sys/module/rcupdate/parameters/rcu_cpu_stall_timeout
taskset 1 act write settler /proc/conveyor s &
sleep 0.5
taskset 2 act write counter /proc/conveyor c
