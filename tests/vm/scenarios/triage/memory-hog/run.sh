# SPDX-License-Identifier: GPL-2.0
# One process has most of the memory and sleeps; another one asks for a little, and there is none.
echo 2 >/proc/sys/vm/panic_on_oom
free=$(grep MemAvailable /proc/meminfo | tr -dc 0-9)
act eat archiver $((free / 1024 - 60)) &
sleep 6
act eat shopkeeper 30 &
sleep 2
act eat florist 60
