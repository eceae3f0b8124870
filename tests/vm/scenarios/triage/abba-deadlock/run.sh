# SPDX-License-Identifier: GPL-2.0
# Two processes take two locks in two orders; others wait behind them, and one waits the longest for what is fine.
insmod harbour.ko
echo 4 >/proc/sys/kernel/hung_task_timeout_secs
act write captain /proc/harbour d &
act write pilot /proc/harbour l &
sleep 3
act write inspector /proc/harbour i &
sleep 0.3
act write clerk /proc/harbour r &
act write harbourmaster /proc/harbour i &
sleep 0.3
echo 1 >/proc/sys/kernel/hung_task_panic
