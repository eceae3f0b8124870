#!/bin/busybox sh
# SPDX-License-Identifier: GPL-2.0
# PID 1 of an arm64 machine that has something to do, and is crashed by hand in the midst of it.
/bin/busybox mkdir -p /proc /sys /dev /run /extra
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
for module in $(cat /lib/boot-modules); do insmod "/lib/$module" || echo "lab: insmod $module failed"; done
. /lib/work
echo "lab: crash"
echo 1 >/proc/sys/kernel/sysrq
echo c >/proc/sysrq-trigger
