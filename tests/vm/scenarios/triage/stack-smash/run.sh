# SPDX-License-Identifier: GPL-2.0
insmod label.ko
act write printer /proc/label go
