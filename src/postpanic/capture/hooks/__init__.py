"""The saver within a distribution's image, which puts volumes together that ours cannot: LVM, LUKS, iSCSI."""
