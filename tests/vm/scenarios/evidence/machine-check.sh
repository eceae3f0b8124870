# SPDX-License-Identifier: GPL-2.0
# The host reports errors of the memory: corrected ones first, then one that ends it.
crash_now() {
    for cpu in /sys/devices/system/machinecheck/machinecheck*; do echo 1 >$cpu/check_interval; done
    echo "lab: please check corrected"
    sleep 6
    echo "lab: please check fatal"
    sleep 60
}
