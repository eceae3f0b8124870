# SPDX-License-Identifier: GPL-2.0
# One module writes past its cards, into the crates of another one, which then counts them.
insmod depot.ko
insmod stamp.ko
act write stamper /proc/stamp go
sleep 0.5
act write storekeeper /proc/depot count
