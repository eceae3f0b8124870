# SPDX-License-Identifier: GPL-2.0
# Kernel threads wait for each other in every way there is; then a process panics the machine.
mkdir -p /extra
mount -t ext4 -o ro /dev/vde /extra || echo "lab: failed: no extra disk"
for module in $(cat /extra/load-modules); do insmod "/extra/modules/$module" || echo "lab: failed: no $module"; done
sleep 7
echo "lab: locked: $(grep -l 'State:.D' /proc/[0-9]*/status | wc -l) processes wait"
crash trigger panic-maker c
