# SPDX-License-Identifier: GPL-2.0
# On a whole host, from the second disk: runs what is to be done in this boot, then what ends it.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
cd /opt/steps
number=$(cat next)
echo $((number + 1)) >next
echo "steps: boot $number of kernel $(uname -r)"
mkdir -p "results/$number"
# The deadlines are for the guest's clock, which runs with the host's.
timeout_s=$(cat timeout)
cd /root
for script in "/opt/steps/boots/$number"/0*; do
    [ -e "$script" ] || continue
    step=${script##*/}
    result="/opt/steps/results/$number/$step"
    started=$(cut -d ' ' -f 1 /proc/uptime)
    timeout -k 5 "$timeout_s" sh "$script" </dev/null >"$result.out" 2>"$result.err"
    status=$?
    echo "$status $started $(cut -d ' ' -f 1 /proc/uptime)" >"$result.status"
    echo "steps: boot $number step $step ended with $status"
done
sync
mount -o remount,ro /opt/steps || echo "steps: failed: remount"
echo "steps: boot $number done"
sh "/opt/steps/boots/$number/end"
