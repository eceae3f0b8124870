# SPDX-License-Identifier: GPL-2.0
# Lays a Debian tree out as openSUSE's is: grub2-mkconfig, /boot/grub2, /etc/sysconfig, the kernel below /usr/lib/modules.
set -e
release=$(ls /usr/lib/modules)
rm -f /etc/kernel/*/zz-update-grub /usr/sbin/update-grub
sed -i '/^for x in .*default\/grub\.d/,/^done/d' /usr/sbin/grub-mkconfig
mv /usr/sbin/grub-mkconfig /usr/sbin/grub2-mkconfig
rm -r /etc/default/grub.d
mv "/boot/vmlinuz-$release" "/usr/lib/modules/$release/vmlinuz"
mv "/boot/config-$release" "/usr/lib/modules/$release/config"
mv "/boot/System.map-$release" "/usr/lib/modules/$release/System.map"
ln -s "../usr/lib/modules/$release/vmlinuz" "/boot/vmlinuz-$release"
mv "/boot/initrd.img-$release" "/boot/initrd-$release"
cat >/etc/default/grub <<'G'
# Modified by YaST2.
GRUB_DISTRIBUTOR=
GRUB_DEFAULT=saved
GRUB_HIDDEN_TIMEOUT_QUIET=true
GRUB_TIMEOUT=0
GRUB_CMDLINE_LINUX_DEFAULT="console=ttyS0 no_timer_check mitigations=auto security=none"
GRUB_CMDLINE_LINUX=""
GRUB_TERMINAL="serial"
GRUB_SERIAL_COMMAND="serial --unit=0 --speed=115200"
GRUB_DISABLE_OS_PROBER="true"
G
mkdir -p /etc/sysconfig /boot/grub2 /dev/disk/by-uuid
cat >/etc/sysconfig/kdump <<'K'
KDUMP_KERNELVER=""
KDUMP_CRASHKERNEL=""
KDUMP_COMMANDLINE=""
KDUMP_COMMANDLINE_APPEND=""
KDUMP_AUTO_RESIZE="false"
KDUMP_FREE_DISK_SIZE="64"
KDUMP_IMMEDIATE_REBOOT="true"
KDUMP_SAVEDIR="/var/crash"
KDUMP_KEEP_OLD_DUMPS="5"
KDUMP_DUMPLEVEL="31"
KDUMP_DUMPFORMAT="compressed"
KDUMP_UPDATE_BOOTLOADER="false"
K
rm -f /etc/os-release /etc/debian_version
printf 'NAME="openSUSE Leap"\nID="opensuse-leap"\nID_LIKE="suse opensuse"\nVERSION_ID="15.6"\n' >/etc/os-release
grub2-mkconfig -o /boot/grub2/grub.cfg
# GRUB was built to look in /boot/grub.
printf 'configfile /boot/grub2/grub.cfg\n' >/boot/grub/grub.cfg
