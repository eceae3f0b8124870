# SPDX-License-Identifier: GPL-2.0
# A disk stops answering a reader, whom khungtaskd does not look at; others wait for the page, and for each other.
insmod silo.ko
mke2fs -F /dev/silo0 >/dev/null 2>&1
mkdir -p /mnt/silo
mount -t ext4 /dev/silo0 /mnt/silo
dd if=/bin/busybox of=/mnt/silo/barley bs=64k count=8 2>/dev/null
./harvest read reaper /mnt/silo/barley /tmp/first &
./harvest cut thresher /mnt/silo/barley /tmp/second &
./harvest add gleaner /mnt/silo/barley /tmp/third &
sync
echo 4 >/proc/sys/kernel/hung_task_timeout_secs
sleep 1.5
echo 3 >/proc/sys/vm/drop_caches
echo go >/proc/silo
for turn in first second third; do echo now >/tmp/$turn; sleep 1.5; done
echo 1 >/proc/sys/kernel/hung_task_panic
