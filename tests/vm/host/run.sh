# SPDX-License-Identifier: GPL-2.0
# PID 1 of the host: does what is on /opt/host, leaves the results there.
export PATH=/opt/host/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mkfifo /run/never
mount -t securityfs securityfs /sys/kernel/security 2>/dev/null
mount -t configfs configfs /sys/kernel/config 2>/dev/null
mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null
hostname "$(cat /etc/hostname)"
ip link set lo up
cp -a /opt/host/files/. /
echo "host: kernel $(uname -r)"
# The deadlines are for the guest's clock, which runs with the host's: see scale_timeout().
timeout_s=$(cat /opt/host/timeout)
mkdir -p /opt/host/results
cd /root
for script in /opt/host/commands/*; do
    number=${script##*/}
    started=$(cut -d ' ' -f 1 /proc/uptime)
    timeout -k 5 "$timeout_s" sh "$script" </dev/null >"/opt/host/results/$number.out" 2>"/opt/host/results/$number.err"
    status=$?
    echo "$status $started $(cut -d ' ' -f 1 /proc/uptime)" >"/opt/host/results/$number.status"
    echo "host: command $number ended with $status"
done
sync
mount -o remount,ro /opt/host || echo "host: failed: remount"
echo "host: done"
if [ -e /opt/host/trigger ]; then
    sh /opt/host/trigger
    sleep 60
    echo "host: failed: still alive"
else
    mount -o remount,ro /
fi
# No program can be started once the disks are shut down, and PID 1 must not end: it waits for a writer.
echo o >/proc/sysrq-trigger
: </run/never
