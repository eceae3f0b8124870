# SPDX-License-Identifier: GPL-2.0
# A function of a loaded module calls through a null pointer: the instruction pointer itself is junk.
# The interface's own packets would meet the poked code first.
echo 1 >/proc/sys/net/ipv6/conf/dummy0/disable_ipv6
echo 1 >/proc/sys/kernel/panic_on_oops
# xor %eax,%eax; call *%rax
echo "lab: please poke $(grep ' dummy_xmit' /proc/kallsyms | cut -c1-16) 31c0ffd0"
crash send packet-sender 192.0.2.7
