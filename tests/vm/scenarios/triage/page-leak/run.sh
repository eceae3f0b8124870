# SPDX-License-Identifier: GPL-2.0
insmod quarry.ko
echo 2 >/proc/sys/vm/panic_on_oom
act eat mason 30 &
sleep 1
while [ $(grep MemAvailable /proc/meminfo | tr -dc 0-9) -gt 40000 ]; do echo go >/proc/quarry || break; done
act eat carter 70
