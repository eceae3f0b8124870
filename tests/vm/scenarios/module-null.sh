# SPDX-License-Identifier: GPL-2.0
# A function of a loaded module reads through a null pointer, in a process that sends packets.
# The interface's own packets would meet the poked code first.
echo 1 >/proc/sys/net/ipv6/conf/dummy0/disable_ipv6
echo 1 >/proc/sys/kernel/panic_on_oops
# xor %eax,%eax; mov (%rax),%rax
echo "lab: please poke $(grep ' dummy_xmit' /proc/kallsyms | cut -c1-16) 31c0488b00"
crash send packet-sender 192.0.2.7
