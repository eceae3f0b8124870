# SPDX-License-Identifier: GPL-2.0
# A function of a loaded module calls itself until the kernel stack's guard page is hit.
# The interface's own packets would meet the poked code first.
echo 1 >/proc/sys/net/ipv6/conf/dummy0/disable_ipv6
echo 1 >/proc/sys/kernel/panic_on_oops
# call .
echo "lab: please poke $(grep ' dummy_xmit' /proc/kallsyms | cut -c1-16) e8fbffffff"
crash send packet-sender 192.0.2.7
