# SPDX-License-Identifier: GPL-2.0
insmod courier.ko
act write postmaster /proc/courier go
