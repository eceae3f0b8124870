# SPDX-License-Identifier: GPL-2.0
insmod roster.ko
act write secretary /proc/roster n
sleep 0.3
act write referee /proc/roster t
