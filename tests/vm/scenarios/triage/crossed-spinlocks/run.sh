# SPDX-License-Identifier: GPL-2.0
insmod viaduct.ko
echo 3 >/proc/sys/kernel/watchdog_thresh
echo 1 >/proc/sys/kernel/softlockup_panic
echo 120 >/sys/module/rcupdate/parameters/rcu_cpu_stall_timeout
taskset 1 act write freight /proc/viaduct w &
taskset 2 act write express /proc/viaduct e
