"""Make a machine ready to capture its crash: image, kexec, panic policy, configuration."""
