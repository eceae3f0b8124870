# SPDX-License-Identifier: GPL-2.0
# A function of a loaded module reads through a null pointer, in a process that sends packets; every front writes.
crash_now() {
    # The interface's own packets would meet the poked code first.
    echo 1 >/proc/sys/net/ipv6/conf/dummy0/disable_ipv6
    ip addr add 192.0.2.1/24 dev dummy0 && ip link set dummy0 up
    if [ -e /dev/pmsg0 ]; then
        for i in 1 2 3 4 5 6 7 8; do echo "lab: message $i of a process" >/dev/pmsg0; done
    fi
    echo 1 >/proc/sys/kernel/panic_on_oops
    # xor %eax,%eax; mov (%rax),%rax
    echo "lab: please poke $(grep ' dummy_xmit' /proc/kallsyms | cut -c1-16) 31c0488b00"
    crash send packet-sender 192.0.2.7
}
