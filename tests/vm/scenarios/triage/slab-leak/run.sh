# SPDX-License-Identifier: GPL-2.0
# A module's slab cache grows until there is no memory; who runs out of it is another process.
insmod pollen.ko
echo 2 >/proc/sys/vm/panic_on_oom
act eat brewer 40 &
sleep 1
while [ $(grep MemAvailable /proc/meminfo | tr -dc 0-9) -gt 30000 ]; do echo go >/proc/pollen || break; done
act eat miller 60
