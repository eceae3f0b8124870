# SPDX-License-Identifier: GPL-2.0
insmod tollgate.ko
echo 3 >/proc/sys/kernel/watchdog_thresh
echo 1 >/proc/sys/kernel/softlockup_panic
echo 120 >/sys/module/rcupdate/parameters/rcu_cpu_stall_timeout
taskset 2 act write coachman /proc/tollgate go
