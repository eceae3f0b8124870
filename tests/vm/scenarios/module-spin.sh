# SPDX-License-Identifier: GPL-2.0
# A function of a loaded module never returns: soft lockup, found by the watchdog.
# The interface's own packets would meet the poked code first.
echo 1 >/proc/sys/net/ipv6/conf/dummy0/disable_ipv6
echo 5 >/proc/sys/kernel/watchdog_thresh
echo 1 >/proc/sys/kernel/softlockup_panic
# jmp .
echo "lab: please poke $(grep ' dummy_xmit' /proc/kallsyms | cut -c1-16) ebfe"
crash send packet-sender 192.0.2.7
