#!/bin/busybox sh
# SPDX-License-Identifier: GPL-2.0
# PID 1 of both kernels: the one that is crashed, and the one that saves the dump.
# Disks: vda what comes in (ext4), vdb the raw dump, vdc the other files that go out (ext4), vdd swap.
/bin/busybox mkdir -p /proc /sys /dev /tmp /mnt /run /etc
/bin/busybox --install -s /bin
export PATH=/bin HOME=/
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
mkdir -p /dev/pts /dev/shm /in /out
for module in $(cat /lib/boot-modules); do insmod "/lib/$module" || echo "lab: insmod $module failed"; done

if [ -e /proc/vmcore ]; then
    echo "lab: capture kernel $(uname -r)"
    mount -t ext4 /dev/vdc /out || echo "lab: failed: no output disk"
    free | sed 's/^/lab: /'
    crash save /proc/vmcore /dev/vdb || echo "lab: failed: raw copy"
    # --message-level 28: reports and errors, no progress bar on the serial console.
    makedumpfile --message-level 28 -l -d 31 /proc/vmcore /out/dump.kdump >/out/makedumpfile.log 2>&1 ||
        echo "lab: failed: makedumpfile: $(tail -n 1 /out/makedumpfile.log)"
    umount /out
    sync
    echo "lab: done"
    poweroff -f
fi

echo "lab: kernel $(uname -r)"
mount -t ext4 -o ro /dev/vda /in || { echo "lab: failed: no input disk"; poweroff -f; }
if [ "$LAB_CAPTURE" != 0 ]; then
    crash load /in/vmlinuz /in/initrd "$(cat /in/capture-command-line)" || { echo "lab: failed: kexec load"; poweroff -f; }
    echo "lab: capture kernel loaded: $(cat /sys/kernel/kexec_crash_loaded)"
fi
. /in/machine.sh
