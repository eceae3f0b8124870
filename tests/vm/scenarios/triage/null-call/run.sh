# SPDX-License-Identifier: GPL-2.0
insmod tariff.ko
act write broker /proc/tariff go
