"""Serve the connection that is standard input, see :mod:`postpanic.rehearse.servers.nfs.serving`."""

from postpanic.rehearse.servers.nfs.serving import main

if __name__ == "__main__":
    main()
