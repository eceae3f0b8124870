# SPDX-License-Identifier: GPL-2.0
taskset 1 insmod mosaic.ko
taskset 1 act write polisher /proc/mosaic go
