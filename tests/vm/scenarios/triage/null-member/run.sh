# SPDX-License-Identifier: GPL-2.0
# A process has a batch posted; one account has no book.
insmod ledger.ko
act write bookkeeper /proc/ledger go
