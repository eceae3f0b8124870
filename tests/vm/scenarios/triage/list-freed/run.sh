# SPDX-License-Identifier: GPL-2.0
# A book is freed on its shelf and its memory used for notes; then its neighbour is taken out.
insmod shelf.ko
taskset 1 act write warden /proc/shelf d
taskset 1 act write annotator /proc/shelf a
taskset 1 act write reader /proc/shelf t
