# SPDX-License-Identifier: GPL-2.0
# Ten thousand tasks that sleep, and one that panics.
mkdir -p /extra
mount -t ext4 -o ro /dev/vde /extra || echo "lab: failed: no extra disk"
echo 30000 >/proc/sys/kernel/threads-max
echo 30000 >/proc/sys/kernel/pid_max
/extra/bin/many 250 40 || echo "lab: failed: many"
sleep 1
echo "lab: tasks $(cut -d / -f 2 /proc/loadavg | cut -d ' ' -f 1)"
crash trigger panic-maker c
