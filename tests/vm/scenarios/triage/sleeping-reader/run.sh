# SPDX-License-Identifier: GPL-2.0
# Readers behind a writer behind a reader that waits for what nobody completes.
insmod garden.ko
echo 4 >/proc/sys/kernel/hung_task_timeout_secs
act write gardener /proc/garden w &
sleep 0.4
act write digger /proc/garden d &
sleep 0.4
for name in guest1 guest2 guest3; do act write $name /proc/garden v & done
sleep 0.4
echo 1 >/proc/sys/kernel/hung_task_panic
