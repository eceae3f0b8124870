# SPDX-License-Identifier: GPL-2.0
# The first process ends, as if its service manager had crashed.
exit 77
