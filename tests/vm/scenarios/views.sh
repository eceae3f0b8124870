# SPDX-License-Identifier: GPL-2.0
# Everything that a process can hold, and what /proc says of it right before the crash.
mkdir -p /extra
mount -t ext4 -o ro /dev/vde /extra || echo "lab: failed: no extra disk"
ip neigh add 192.0.2.77 lladdr 02:00:00:00:00:77 dev dummy0 nud permanent 2>/dev/null ||
    arp -i dummy0 -s 192.0.2.77 02:00:00:00:00:77 || echo "lab: views: no neighbour"
for module in $(cat /extra/load-modules); do insmod "/extra/modules/$module" || echo "lab: no $module"; done
/extra/bin/views hold >/tmp/held.log 2>&1 &
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    grep -q "^lab: held" /tmp/held.log && break
    sleep 0.5
done
cat /tmp/held.log
mount -t ext4 /dev/vdc /out || echo "lab: failed: no output disk"
show() {
    echo "== $1"
    cat "$1" 2>&1
}
links() {
    echo "== ls $1"
    for entry in "$1"/*; do
        [ -L "$entry" ] && echo "${entry##*/} $(readlink "$entry")"
    done
}
holder=$(sed -n 's/^lab: held //p' /tmp/held.log)
{
    echo "== holder"
    echo "$holder"
    echo "== pages"
    /extra/bin/views pages "$holder"
    for pid in $(ls /proc | grep '^[0-9]*$'); do
        show /proc/$pid/maps
        links /proc/$pid/fd
        echo "== ls /proc/$pid"
        echo "root $(readlink /proc/$pid/root)"
        echo "cwd $(readlink /proc/$pid/cwd)"
    done
    for name in self/mountinfo net/tcp net/tcp6 net/udp net/udp6 net/raw net/unix net/netlink net/packet net/arp net/dev \
        net/if_inet6 sysvipc/shm sysvipc/sem sysvipc/msg swaps devices diskstats ioports iomem interrupts softirqs cpuinfo \
        partitions; do
        show /proc/$name
    done
    container=$(pidof sleep)
    for pid in $container; do
        show /proc/$pid/mountinfo
        show /proc/$pid/net/dev
    done
    for device in /sys/bus/pci/devices/*; do
        echo "== pci ${device##*/}"
        cat "$device/class" "$device/vendor" "$device/device"
    done
    for entry in /sys/firmware/memmap/*; do
        echo "== memmap ${entry##*/}"
        cat "$entry/start" "$entry/end" "$entry/type"
    done
    for irq in /proc/irq/[0-9]*; do
        show "$irq/smp_affinity_list"
    done
    for fd in /proc/$holder/fdinfo/*; do
        show "$fd"
    done
} >/out/views
umount /out
# Nothing is on its way to a disk when it crashes.
sync
crash trigger panic-maker c
