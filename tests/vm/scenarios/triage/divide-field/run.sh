# SPDX-License-Identifier: GPL-2.0
insmod gauge.ko
act write observer /proc/gauge go
