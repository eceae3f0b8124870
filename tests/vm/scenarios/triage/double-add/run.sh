# SPDX-License-Identifier: GPL-2.0
insmod turnstile.ko
act write gatekeeper /proc/turnstile n
act write gatekeeper /proc/turnstile n
act write ticketer /proc/turnstile again
