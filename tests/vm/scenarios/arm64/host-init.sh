#!/bin/busybox sh
# SPDX-License-Identifier: GPL-2.0
# PID 1 of the initramfs of an arm64 host: on to the root file system, which is all of vda; vdb has what is tested.
/bin/busybox mkdir -p /proc /sys /dev /root
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
for module in $(cat /lib/boot-modules); do insmod "/lib/$module" || echo "host: insmod $module failed"; done
mount -t ext4 /dev/vda /root || { echo "host: failed: no root disk"; poweroff -f; }
mount -t ext4 -o ro /dev/vdb /root/opt || { echo "host: failed: no disk of what is tested"; poweroff -f; }
for place in proc sys dev; do mount -o move /$place /root/$place; done
exec switch_root /root /usr/bin/busybox sh /opt/host.sh
