#!/bin/busybox sh
# SPDX-License-Identifier: GPL-2.0
# PID 1 of a guest that leaves evidence: it crashes, is reset, and collects what outlived that.
# Disks: vda what goes out (its first sector tells how far we are), vdb and vdc for drivers that write to disks.
/bin/busybox mkdir -p /proc /sys /dev /tmp /keep /etc
/bin/busybox --install -s /bin
export PATH=/bin HOME=/
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
mount -t efivarfs efivarfs /sys/firmware/efi/efivars 2>/dev/null
while read -r module options; do
    insmod "/lib/$module" $options || echo "lab: insmod $module failed"
done </lib/load-modules
mount -t efivarfs efivarfs /sys/firmware/efi/efivars 2>/dev/null
mount -t pstore pstore /sys/fs/pstore || echo "lab: failed: no pstore"
mount -t configfs configfs /sys/kernel/config 2>/dev/null
hostname crashed
echo 1 >/proc/sys/kernel/sysrq

# A listener at 10.0.2.2: its name, port, and the settings that are tried, as far as the kernel has them.
listener() {
    target=/sys/kernel/config/netconsole/$1
    mkdir "$target" || return
    echo eth0 >"$target/dev_name"
    echo 10.0.2.15 >"$target/local_ip"
    echo 10.0.2.2 >"$target/remote_ip"
    echo "$2" >"$target/remote_port"
    echo 52:55:0a:00:02:02 >"$target/remote_mac"
    for setting in $3; do
        [ -e "$target/$setting" ] && echo 1 >"$target/$setting"
    done
    if [ -n "$4" ] && [ -d "$target/userdata" ]; then
        mkdir "$target/userdata/rack" "$target/userdata/note"
        echo "r17" >"$target/userdata/rack/value"
        echo "two words" >"$target/userdata/note/value"
        for setting in cpu_nr taskname release msgid; do
            [ -e "$target/userdata/${setting}_enabled" ] && echo 1 >"$target/userdata/${setting}_enabled"
        done
    fi
    echo 1 >"$target/enabled"
}

network() {
    ip addr add 10.0.2.15/24 dev eth0 && ip link set eth0 up
    for i in 1 2 3 4 5 6 7 8 9 10; do
        [ "$(cat /sys/class/net/eth0/carrier 2>/dev/null)" = 1 ] && break
        sleep 0.2
    done
    listener basic 6666 ""
    listener extended 6667 "extended"
    listener release 6668 "extended release" userdata
    # Nearly as long as a record can be: more than a packet with its header.
    echo "<5>lab: long $(printf '%0973d' 0) end" >/dev/kmsg
    printf '<4>lab: caf\303\251 back\\slash' >/dev/kmsg
}

collect() {
    mkdir -p /keep/pstore /keep/efivars
    cp -a /sys/fs/pstore/* /keep/pstore 2>/dev/null
    cp -a /sys/firmware/efi/efivars/dump-* /keep/efivars 2>/dev/null
    dmesg >/keep/dmesg
    tar -c -f /tmp/keep.tar -C /keep .
    dd if=/tmp/keep.tar of=/dev/vda bs=64k seek=1 conv=fsync 2>/dev/null
    echo "lab: collected"
}

. /scenario.sh
if [ "$(dd if=/dev/vda bs=5 count=1 2>/dev/null)" = first ]; then
    collect
else
    echo "lab: kernel $(uname -r)"
    echo first | dd of=/dev/vda bs=512 conv=sync,fsync 2>/dev/null
    network
    crash_now
fi
sleep 600
poweroff -f
