#!/bin/busybox sh
# SPDX-License-Identifier: GPL-2.0
# PID 1 of the initramfs: from busybox to a root file system on a disk. vda is the root, vdb what is to be done.
/bin/busybox mkdir -p /proc /sys /dev /root
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
for module in $(cat /lib/boot-modules); do insmod "/lib/$module" || echo "host: insmod $module failed"; done
# The kernel passes on what it does not know itself.
mount -t ext4 "${HOST_ROOT:-/dev/vda}" /root || { echo "host: failed: no root disk"; poweroff -f; }
mount -t ext4 /dev/vdb /root/opt/host || { echo "host: failed: no disk of commands"; poweroff -f; }
for place in proc sys dev; do mount -o move /$place /root/$place; done
exec switch_root /root /bin/sh /opt/host/run.sh
