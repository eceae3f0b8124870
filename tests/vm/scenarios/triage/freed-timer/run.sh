# SPDX-License-Identifier: GPL-2.0
# Objects are freed with their timers pending; their memory goes to another module before the timers expire.
taskset 1 insmod beacon.ko
taskset 1 act write keeper /proc/beacon r
taskset 1 insmod almanac.ko
sleep 20
