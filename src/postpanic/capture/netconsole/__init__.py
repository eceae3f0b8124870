"""The sender's side of netconsole: where to, over which interface, and whether it arrives."""
