# SPDX-License-Identifier: GPL-2.0
# Lays a Debian tree with OpenRC out as Gentoo's handbook does: OpenRC's own init, GRUB without /etc/default/grub.d.
set -e
dpkg --force-depends --force-unsafe-io -i /root/packages/*.deb
rm -f /etc/runlevels/*/* /etc/kernel/*/zz-update-grub /usr/sbin/update-grub
for service in root localmount bootmisc udev lab-steps; do
    install -m 755 "/root/openrc/$service" "/etc/init.d/$service"
done
for link in sysinit/udev boot/root boot/localmount boot/bootmisc default/lab-steps; do
    ln -s "/etc/init.d/${link#*/}" "/etc/runlevels/$link"
done
mkdir -p /etc/conf.d /etc/local.d /etc/portage
# As GRUB's own sources have it: the loop over the directory is Debian's.
sed -i '/^for x in .*default\/grub\.d/,/^done/d' /usr/sbin/grub-mkconfig
rm -r /etc/default/grub.d
cat >/etc/default/grub <<'G'
# Copyright 1999-2020 Gentoo Authors
GRUB_DISTRIBUTOR="Gentoo"
GRUB_TIMEOUT=0
# Append parameters to the linux kernel command line
GRUB_CMDLINE_LINUX="console=ttyS0 no_timer_check init=/sbin/openrc-init"
#GRUB_CMDLINE_LINUX_DEFAULT=""
GRUB_TERMINAL=serial
GRUB_SERIAL_COMMAND="serial --unit=0 --speed=115200"
GRUB_DISABLE_OS_PROBER=true
G
echo 'Gentoo Base System release 2.15' >/etc/gentoo-release
rm -f /etc/os-release /etc/debian_version
printf 'NAME=Gentoo\nID=gentoo\nPRETTY_NAME="Gentoo Linux"\nVERSION_ID=2.15\n' >/etc/os-release
mkdir -p /dev/disk/by-uuid
grub-mkconfig -o /boot/grub/grub.cfg
