"""
An NFS server in user space, of versions 3 to 4.2.

A process for each connection; what they share is in a file.
"""
