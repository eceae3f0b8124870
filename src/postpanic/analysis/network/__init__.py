"""Network devices, neighbours and sockets."""
