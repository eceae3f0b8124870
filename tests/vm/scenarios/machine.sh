# SPDX-License-Identifier: GPL-2.0
# Sourced by init in the kernel that will be crashed: make it busy, then crash it.
for module in $(cat /in/load-modules); do insmod "/in/modules/$module" || echo "lab: insmod $module failed"; done
mount -t devpts devpts /dev/pts
mount -t tmpfs -o size=64m,nosuid tmpfs /tmp
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mkdir -p /mnt/loop /mnt/overlay /mnt/bind /mnt/cgroup /dev/mqueue /dev/hugepages /run/upper /run/work
mount -t mqueue mqueue /dev/mqueue
mount -t cgroup2 cgroup2 /mnt/cgroup
echo 8 >/proc/sys/vm/nr_hugepages
mount -t hugetlbfs hugetlbfs /dev/hugepages
mount -o bind /tmp /mnt/bind
mount -t overlay -o lowerdir=/in,upperdir=/run/upper,workdir=/run/work overlay /mnt/overlay
truncate -s 16777216 /tmp/loop.img && mke2fs -F /tmp/loop.img >/dev/null && mount -t ext2 -o loop /tmp/loop.img /mnt/loop
for mount in /mnt/loop /mnt/overlay /run /dev/shm; do
    for i in 1 2 3 4 5 6 7 8; do dd if=/in/data of=$mount/file-$i bs=64k count=$i skip=$i 2>/dev/null; done
done
mkswap /dev/vdd >/dev/null && swapon /dev/vdd
hostname crashed
ifconfig lo 127.0.0.1 up
ip addr add ::1/128 dev lo 2>/dev/null
ip addr add 192.0.2.1/24 dev dummy0 && ip link set dummy0 up
ip addr add 10.0.2.15/24 dev eth0 && ip link set eth0 up && ip route add default via 10.0.2.2
find /in -type f -exec cat {} + >/dev/null
echo 1 >/proc/sys/kernel/sysrq
load &
until [ -e /tmp/ready ]; do sleep 0.2; done
unshare -m -u -n -i -p --fork sh -c 'hostname container; exec sleep 100000' &
sleep 0.5
echo "lab: loaded, $(ls -d /proc/[0-9]* | wc -l) processes"
crash spin busy-loop &
. /in/scenario.sh
sleep 60
echo "lab: failed: still alive"
poweroff -f
