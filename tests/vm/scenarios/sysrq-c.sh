# SPDX-License-Identifier: GPL-2.0
# A named process, not init, asks for the crash.
crash trigger panic-maker c
