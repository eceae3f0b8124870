# SPDX-License-Identifier: GPL-2.0
# Planner > porters > inspector > papers that nobody brings.
insmod quay.ko
echo 4 >/proc/sys/kernel/hung_task_timeout_secs
act write surveyor /proc/quay i &
sleep 0.3
act write porter1 /proc/quay c &
sleep 0.3
act write porter2 /proc/quay c &
sleep 0.3
act write planner /proc/quay p &
sleep 0.3
act write porter3 /proc/quay c &
sleep 0.3
echo 1 >/proc/sys/kernel/hung_task_panic
