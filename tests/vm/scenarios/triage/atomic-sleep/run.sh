# SPDX-License-Identifier: GPL-2.0
echo 1 >/proc/sys/kernel/panic_on_warn
insmod bakery.ko
act write baker /proc/bakery go
