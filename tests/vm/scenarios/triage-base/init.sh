#!/bin/busybox sh
# SPDX-License-Identifier: GPL-2.0
# PID 1 of a machine that is at work until it is told how to crash.
# Disks: vda has an archive behind its first MiB once the machine goes on, vdb is the machine's own (ext4).
/bin/busybox mkdir -p /proc /sys /dev /tmp /mnt /run /etc
/bin/busybox --install -s /bin
export PATH=/bin HOME=/
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
mkdir -p /dev/pts /dev/shm /mnt/disk /sys/kernel/debug
mount -t debugfs debugfs /sys/kernel/debug
for module in $(cat /lib/modules-in-order); do insmod "/lib/$module" || echo "lab: insmod $module failed"; done
crash load /lib/capture /lib/capture.initrd lab-end || { echo "lab: failed: kexec load"; poweroff -f; }
mount -t devpts devpts /dev/pts
mount -t tmpfs -o size=64m tmpfs /tmp
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t ext4 /dev/vdb /mnt/disk || { echo "lab: failed: no disk"; poweroff -f; }
hostname server
ifconfig lo 127.0.0.1 up
ip addr add 192.0.2.1/24 dev dummy0 && ip link set dummy0 up
for number in 1 2 3 4 5 6 7 8; do dd if=/bin/busybox of=/mnt/disk/file-$number bs=64k count=$number 2>/dev/null; done
echo 1 >/proc/sys/kernel/panic_on_oops
echo 1 >/proc/sys/kernel/sysrq
load >/dev/null &
until [ -e /tmp/ready ]; do sleep 0.2; done
sync
echo "lab: standing, $(ls -d /proc/[0-9]* | wc -l) processes"
until dd if=/dev/vda bs=512 skip=2048 count=1 2>/dev/null | grep -q run.sh; do
    sleep 0.2
    blockdev --flushbufs /dev/vda
done
mkdir /job
dd if=/dev/vda bs=64k skip=16 2>/dev/null | tar x -C /job
echo "lab: going on"
cd /job || poweroff -f
# What a script ends with 77, the first process ends with too.
sh ./run.sh
[ $? != 77 ] || exit 1
sleep 90
echo "lab: failed: still alive"
poweroff -f
