# SPDX-License-Identifier: GPL-2.0
# A machine with much to do and a slow disk: nothing is wrong with it, somebody crashes it.
for number in 1 2 3 4 5 6 7 8 9 10 11 12; do
    (while :; do dd if=/dev/zero of=/mnt/disk/busy-$number bs=16k count=40 conv=fsync 2>/dev/null; done) &
done
for number in 1 2 3 4; do act direct recorder$number /mnt/disk/record-$number & done
act spin thinker &
for number in $(seq 60); do act sleep idler$number & done
(while :; do ls -lR /sys >/dev/null; done) &
sleep 5
act write operator /proc/sysrq-trigger c
