# SPDX-License-Identifier: GPL-2.0
# One process drops a parcel, another one looks at it.
insmod parcel.ko
act write dispatcher /proc/parcel d
sleep 1
act write scanner /proc/parcel s
