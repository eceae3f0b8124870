# SPDX-License-Identifier: GPL-2.0
# Lays a Debian tree out as Fedora's is: entries of the Boot Loader Specification, /etc/kernel/cmdline, /etc/kdump.conf.
set -e
release=$(ls /usr/lib/modules)
uuid=$(sed -n 's/^UUID=\([^ ]*\) .*/\1/p' /etc/fstab)
line="root=UUID=$uuid ro console=ttyS0 no_timer_check"
rm -rf /etc/kernel/*/zz-update-grub /usr/sbin/update-grub /usr/sbin/grub-mkconfig /etc/default/grub.d
cp "/boot/vmlinuz-$release" "/usr/lib/modules/$release/vmlinuz"
cp "/boot/config-$release" "/usr/lib/modules/$release/config"
mv "/boot/initrd.img-$release" "/boot/initramfs-$release.img"
cat >/etc/default/grub <<G
GRUB_TIMEOUT=0
GRUB_DISTRIBUTOR="Fedora Linux"
GRUB_DEFAULT=saved
GRUB_DISABLE_SUBMENU=true
GRUB_TERMINAL_OUTPUT="console"
GRUB_CMDLINE_LINUX="console=ttyS0 no_timer_check"
GRUB_DISABLE_RECOVERY="true"
GRUB_ENABLE_BLSCFG=true
G
mkdir -p /boot/loader/entries /boot/grub2 /etc/kernel /etc/sysconfig
echo "$line" >/etc/kernel/cmdline
cat >"/boot/loader/entries/$(cat /etc/machine-id)-$release.conf" <<B
title Fedora Linux ($release) 39
version $release
linux /boot/vmlinuz-$release
initrd /boot/initramfs-$release.img
options $line
grub_users \$grub_users
grub_arg --unrestricted
grub_class fedora
B
# Fedora's GRUB has a module for the last line, Debian's has none: who boots this reads the entries instead.
cat >/boot/grub2/grub.cfg <<C
### BEGIN /etc/grub.d/00_header ###
serial --unit=0 --speed=115200
terminal_output serial
### BEGIN /etc/grub.d/10_linux ###
insmod part_msdos
insmod ext2
search --no-floppy --fs-uuid --set=root $uuid
insmod blscfg
blscfg
C
printf 'configfile /boot/grub2/grub.cfg\n' >/boot/grub/grub.cfg
cat >/etc/kdump.conf <<'K'
path /var/crash
core_collector makedumpfile -l --message-level 7 -d 31
failure_action reboot
final_action reboot
K
cat >/etc/sysconfig/kdump <<'K'
KDUMP_KERNELVER=""
KDUMP_COMMANDLINE=""
KDUMP_COMMANDLINE_REMOVE="hugepages hugepagesz slub_debug quiet log_buf_len swiotlb cma hugetlb_cma ignition.firstboot"
KDUMP_COMMANDLINE_APPEND="irqpoll nr_cpus=1 reset_devices cgroup_disable=memory numa=off"
KEXEC_ARGS="-s"
KDUMP_IMG="vmlinuz"
K
rm -f /etc/os-release /etc/debian_version
printf 'NAME="Fedora Linux"\nID=fedora\nVERSION_ID=39\nPRETTY_NAME="Fedora Linux 39"\n' >/etc/os-release
echo 'Fedora release 39 (Thirty Nine)' >/etc/fedora-release
