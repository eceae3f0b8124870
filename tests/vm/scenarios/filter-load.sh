# SPDX-License-Identifier: GPL-2.0
# A machine with much memory and much in it: files in the cache, heaps, slabs, freed pages with old content.
mkdir -p /extra /run/sessions
mount -t ext4 -o ro /dev/vde /extra || echo "lab: failed: no extra disk"
mount -t tmpfs -o size=1g,nr_inodes=1m tmpfs /run/sessions
PATH=$PATH:/extra/bin
# THP would make of every heap a few thousand huge pages; half of them is what a machine in use still finds.
heap hold postgres 320 1 /extra/files/* & first=$!
heap hold java 480 2 /extra/files/* & second=$!
wait $first || echo "lab: failed: heap"
heap hold redis-server 320 3 /extra/files/* & first=$!
wait $second || echo "lab: failed: heap"
echo never >/sys/kernel/mm/transparent_hugepage/enabled
heap hold python 160 4 /extra/files/* & second=$!
wait $first || echo "lab: failed: heap"
heap spend 240 5 /extra/files/* || echo "lab: failed: heap"
wait $second || echo "lab: failed: heap"
echo "lab: heaps are filled"
cat /extra/files/* | wc -c | sed 's/^/lab: bytes of files read: /'
heap files /run/sessions 100000
heap missing /extra 150000
heap objects gateway 20000
sed -n 's/^\(MemTotal\|MemFree\|Cached\|AnonPages\|AnonHuge\|Slab\|Buffers\)/lab: &/p' /proc/meminfo
crash trigger panic-maker c
