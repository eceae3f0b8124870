"""Messages that kernels send by netconsole: packets, their order, logs of many hosts, reports found as they come."""
