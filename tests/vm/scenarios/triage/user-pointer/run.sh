# SPDX-License-Identifier: GPL-2.0
insmod census.ko
act write citizen /proc/census rooms-and-people
