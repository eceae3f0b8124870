# SPDX-License-Identifier: GPL-2.0
# PID 1 ends.
exit 1
