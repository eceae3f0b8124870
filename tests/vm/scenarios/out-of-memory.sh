# SPDX-License-Identifier: GPL-2.0
# A process eats all memory, and running out of it is made fatal.
swapoff /dev/vdd
echo 2 >/proc/sys/vm/panic_on_oom
crash eat memory-leaker
