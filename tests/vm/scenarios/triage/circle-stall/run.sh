# SPDX-License-Identifier: GPL-2.0
# A search in a list that has become a circle; RCU notices first.
insmod orbit.ko
echo 0 >/proc/sys/kernel/soft_watchdog
echo 3 >/sys/module/rcupdate/parameters/rcu_cpu_stall_timeout
echo 1 >/proc/sys/kernel/panic_on_rcu_stall
taskset 2 act write navigator /proc/orbit go
