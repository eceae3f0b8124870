# SPDX-License-Identifier: GPL-2.0
# Two CPUs warn at once, then oops at once; the machine stays up.
crash_now() {
    insmod /lib/both.ko
    sleep 8
    sync
    echo "lab: crashed"
}
