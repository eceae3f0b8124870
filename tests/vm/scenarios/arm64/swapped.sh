# SPDX-License-Identifier: GPL-2.0
# Pages on a swap device that is not the first.
mkswap /dev/vda >/dev/null || echo "lab: failed: mkswap"
mkswap /dev/vdb >/dev/null || echo "lab: failed: mkswap"
swapon /dev/vda || echo "lab: failed: swapon"
swapon /dev/vdb || echo "lab: failed: swapon"
swapoff /dev/vda || echo "lab: failed: swapoff"
swapped >/run/swapped &
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    grep -q "swapped end" /run/swapped && break
    sleep 0.5
done
cat /run/swapped /proc/swaps
sleep 2
