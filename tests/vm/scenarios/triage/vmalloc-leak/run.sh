# SPDX-License-Identifier: GPL-2.0
# A module keeps areas of virtual memory until there is none; who runs out of it is another process.
insmod canvas.ko
echo 2 >/proc/sys/vm/panic_on_oom
act eat sculptor 40 &
sleep 1
while [ $(grep MemAvailable /proc/meminfo | tr -dc 0-9) -gt 40000 ]; do echo go >/proc/canvas || break; done
act eat glazier 70
