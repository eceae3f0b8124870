# SPDX-License-Identifier: GPL-2.0
# Ten thousand tasks that sleep, and one that panics.
echo 30000 >/proc/sys/kernel/threads-max
echo 30000 >/proc/sys/kernel/pid_max
many 250 40 || echo "lab: failed: many"
sleep 1
echo "lab: tasks $(cut -d / -f 2 /proc/loadavg | cut -d ' ' -f 1)"
