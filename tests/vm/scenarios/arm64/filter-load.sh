# SPDX-License-Identifier: GPL-2.0
# A machine with much in its memory, half of what the one of x86-64 has: files, heaps, slabs, freed pages.
mount -t ext4 -o ro /dev/vda /extra || echo "lab: failed: no extra disk"
mkdir -p /run/sessions
mount -t tmpfs -o size=1g,nr_inodes=1m tmpfs /run/sessions
heap hold postgres 160 1 /extra/files/* & first=$!
heap hold java 240 2 /extra/files/* & second=$!
wait $first || echo "lab: failed: heap"
heap hold redis-server 160 3 /extra/files/* & first=$!
wait $second || echo "lab: failed: heap"
echo never >/sys/kernel/mm/transparent_hugepage/enabled
heap hold python 80 4 /extra/files/* & second=$!
wait $first || echo "lab: failed: heap"
heap spend 120 5 /extra/files/* || echo "lab: failed: heap"
wait $second || echo "lab: failed: heap"
echo "lab: heaps are filled"
cat /extra/files/* | wc -c | sed 's/^/lab: bytes of files read: /'
heap files /run/sessions 50000
heap missing /extra 75000
heap objects gateway 10000
sed -n 's/^\(MemTotal\|MemFree\|Cached\|AnonPages\|AnonHuge\|Slab\|Buffers\)/lab: &/p' /proc/meminfo
