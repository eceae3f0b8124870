"""Boot loaders: which one boots this machine, and the kernel command line in its configuration."""
