# SPDX-License-Identifier: GPL-2.0
# A lock is taken and not given back; a while later another process wants it.
insmod meter.ko
echo 3 >/proc/sys/kernel/watchdog_thresh
echo 1 >/proc/sys/kernel/softlockup_panic
echo 120 >/sys/module/rcupdate/parameters/rcu_cpu_stall_timeout
act write adjuster /proc/meter adjust
sleep 0.5
taskset 1 act write summer /proc/meter s
