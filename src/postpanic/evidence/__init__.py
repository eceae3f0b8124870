"""Evidence that needs no dump: consoles, logs, pstore, netconsole."""
