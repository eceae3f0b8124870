# SPDX-License-Identifier: GPL-2.0
# The interrupt hits whatever runs: a process that only computes, on each CPU.
taskset 1 act spin composer &
taskset 2 act spin painter &
insmod pulse.ko
sleep 0.5
act write nurse /proc/pulse stop
