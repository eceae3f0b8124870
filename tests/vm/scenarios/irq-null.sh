# SPDX-License-Identifier: GPL-2.0
# A network driver's interrupt handler reads through a null pointer: nobody in particular is on the CPU.
# xor %eax,%eax; mov (%rax),%rax
echo "lab: please poke $(grep ' skb_recv_done' /proc/kallsyms | cut -c1-16) 31c0488b00"
ip neigh flush dev eth0
crash send packet-sender 10.0.2.2
