# SPDX-License-Identifier: GPL-2.0
insmod stock.ko
act write shop /proc/stock go
act write shop /proc/stock go
