# SPDX-License-Identifier: GPL-2.0
insmod parade.ko
sleep 0.3
rmmod parade
sleep 20
