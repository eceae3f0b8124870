#!/bin/busybox sh
# SPDX-License-Identifier: GPL-2.0
# PID 1 of an arm64 machine: a few tasks in ways of sleeping that can be told apart, then a crash by hand.
/bin/busybox mkdir -p /proc /sys /dev
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
for module in $(cat /lib/boot-modules); do insmod "/lib/$module" || echo "lab: insmod $module failed"; done
sleep 3000 &
mkfifo /fifo
cat /fifo &
(while :; do :; done) &
sleep 2
echo "lab: crash"
echo 1 >/proc/sys/kernel/sysrq
echo c >/proc/sysrq-trigger
