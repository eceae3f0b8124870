# SPDX-License-Identifier: GPL-2.0
# PID 1 of an arm64 host: arms it as its administrator would, twice, and crashes it.
busybox=/usr/bin/busybox
$busybox mkdir -p /run/bin
$busybox mount -t tmpfs tmpfs /run
$busybox mount -t tmpfs tmpfs /tmp
$busybox mkdir -p /run/bin /var/crash
$busybox --install -s /run/bin
export PATH=/usr/bin:/run/bin HOME=/root LANG=C.UTF-8 PYTHONPATH=/opt/src
# What update-alternatives would have set up.
export LD_LIBRARY_PATH=/usr/lib/aarch64-linux-gnu/blas:/usr/lib/aarch64-linux-gnu/lapack
mount -t securityfs securityfs /sys/kernel/security 2>/dev/null
hostname host
echo "host: kernel $(uname -r)"
for command in "arm" "arm" "status"; do
    python3 -m postpanic $command >/run/output 2>&1
    status=$?
    sed "s/^/host: /" /run/output
    echo "host: $command ended with $status"
done
sync
echo "host: crash"
echo 1 >/proc/sys/kernel/sysrq
echo c >/proc/sysrq-trigger
sleep 60
echo "host: failed: still alive"
poweroff -f
