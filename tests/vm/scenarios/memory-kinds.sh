# SPDX-License-Identifier: GPL-2.0
# Pages of every kind that a filter has to tell apart; then the kernel's own list of which page is what.
mkdir -p /extra /mnt/huge /mnt/journal /mnt/xfs /mnt/many
mount -t ext4 /dev/vde /extra || echo "lab: failed: no extra disk"
PATH=$PATH:/extra/bin
for module in $(cat /extra/load-modules); do insmod "/extra/modules/$module" || echo "lab: no $module"; done

# In use before memory goes offline: a free one would be broken up for that.
kinds make gigantic

# Memory that is taken out of use as a whole, while there is still an empty block.
offline=0
for block in $(ls -d /sys/devices/system/memory/memory[0-9]* | sort -t y -k 5 -n -r); do
    # The kernel tries for ever to move a page that does not move, until a signal comes.
    if [ $offline = 0 ] && timeout 20 sh -c "echo offline >$block/state"; then
        echo "lab: kind offline-block $((0x$(cat /sys/devices/system/memory/block_size_bytes) / 4096)) ${block##*/}"
        offline=1
    fi
done 2>/dev/null
[ $offline = 1 ] || echo "lab: no offline-block"

echo 32 >/proc/sys/vm/nr_hugepages
mount -t tmpfs -o size=64m,huge=always tmpfs /mnt/huge || echo "lab: no huge tmpfs"
kinds make hugetlb private-hugetlb hugetlbfs thp shared-thp huge-tmpfs ksm swap-cache swapped-tmpfs
kinds make lazily-free locked secret packet-ring queued page-tables

# Merging goes on while the rest is made.
if [ -e /sys/kernel/mm/ksm/run ]; then
    echo 20000 >/sys/kernel/mm/ksm/pages_to_scan
    echo 1 >/sys/kernel/mm/ksm/run
fi

# File systems: with blocks smaller than a page, with a journal, with large folios.
mount -o loop /extra/images/journal /mnt/journal || echo "lab: no journal"
mount -t xfs -o loop /extra/images/xfs /mnt/xfs 2>/dev/null || echo "lab: no xfs"
for place in /mnt/journal /mnt/xfs; do
    cp /in/data $place/data && sync && echo 3 >/proc/sys/vm/drop_caches
    cat $place/data >/dev/null
    # Not written back yet.
    dd if=/in/data of=$place/dirty bs=64k count=64 2>/dev/null
done
cat /in/data /in/vmlinuz >/dev/null
dd if=/dev/zero of=/mnt/journal/zeros bs=64k count=64 2>/dev/null
dd if=/dev/zero of=/dev/shm/zeros bs=64k count=64 2>/dev/null
dd if=/dev/vda of=/dev/null bs=64k count=128 2>/dev/null
kinds pin /in/vmlinuz

if [ -e /sys/block/zram0 ]; then
    echo 67108864 >/sys/block/zram0/disksize
    dd if=/in/data of=/dev/zram0 bs=64k count=384 conv=fsync 2>/dev/null
    echo "lab: kind zsmalloc $(awk '{ print int($3 / 4096) }' /sys/block/zram0/mm_stat)"
else
    echo "lab: no zsmalloc"
fi

mount -t tmpfs -o nr_inodes=100k tmpfs /mnt/many
heap files /mnt/many 30000
heap missing /in 20000
heap objects gateway 8000
# Slabs of which a part is free.
rm -rf /mnt/many/1?

if [ -e /sys/module/virtio_balloon ]; then
    echo "lab: please balloon 64"
    for i in $(seq 120); do
        [ "$(awk '/^balloon_inflate/ { print $2 }' /proc/vmstat)" -ge 16384 ] && break
        sleep 0.5
    done
else
    echo "lab: no balloon"
fi

if [ -e /sys/devices/system/memory/hard_offline_page ]; then
    kinds make soft-offline hwpoison-anonymous hwpoison-thp hwpoison-cache hwpoison-hugetlb
else
    echo "lab: no memory-failure"
fi

for i in $(seq 120); do
    [ -e /sys/kernel/mm/ksm/pages_sharing ] && [ "$(cat /sys/kernel/mm/ksm/pages_sharing)" -lt 2000 ] || break
    sleep 0.5
done
# Of 6.12's page flags KSM is set with every anonymous page, so it is counted here.
if [ -e /sys/kernel/mm/ksm/pages_shared ]; then
    echo 0 >/sys/kernel/mm/ksm/run
    echo "lab: kind ksm $(cat /sys/kernel/mm/ksm/pages_shared)"
else
    echo "lab: no ksm"
fi
mount -t ext4 /dev/vdc /out || echo "lab: failed: no output disk"
kinds census /out/page-flags
# What it said is to be out before the kernel says something, too.
sleep 1
umount /out
sed 's/^/lab: /' /proc/meminfo
crash trigger panic-maker c
