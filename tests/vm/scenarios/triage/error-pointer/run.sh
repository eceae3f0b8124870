# SPDX-License-Identifier: GPL-2.0
insmod permit.ko
act write officer /proc/permit go
