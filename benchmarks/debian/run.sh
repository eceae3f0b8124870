# SPDX-License-Identifier: GPL-2.0
# What the unit runs, from the second disk: arm, say so, do what comes last (crash, or power off).
export PATH=/opt/run:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
cd /opt/run
# Whoever logs users in on that line hangs it up for everybody else, but not for who has it as the console.
exec >/dev/console 2>&1
echo "bench: kernel $(uname -r)"
sh ./arm.sh || { echo "bench: failed: arming ended with status $?"; sync; poweroff -f; }
for try in 1 2 3 4 5; do
    [ "$(cat /sys/kernel/kexec_crash_loaded)" = 1 ] && break
    sleep 1
done
[ "$(cat /sys/kernel/kexec_crash_loaded)" = 1 ] || { echo "bench: failed: nothing is loaded"; sync; poweroff -f; }
echo "bench: armed"
sync
sh ./end.sh
sleep 60
echo "bench: failed: still alive"
poweroff -f
