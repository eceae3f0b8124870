"""
A server of gdb's remote protocol: a dump as any front-end of gdb sees a stopped machine.

The protocol is that of gdb's manual, appendix "GDB Remote Serial Protocol". The
client is hostile until it shows otherwise: packets are bounded, and nothing in
one names a file that is read or written.
"""
