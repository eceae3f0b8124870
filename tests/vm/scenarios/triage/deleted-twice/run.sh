# SPDX-License-Identifier: GPL-2.0
insmod coatroom.ko
act write attendant /proc/coatroom out
sleep 0.3
act write porter /proc/coatroom closing
