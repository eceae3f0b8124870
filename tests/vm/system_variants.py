"""
Hosts laid out as other distributions lay theirs out, made of Debian's packages.

Real are kernel, programs, GRUB, systemd and OpenRC, and the order in which they do
things at boot. Imitated, by the documentation of each distribution, are the places
and the contents of files: where kernel, initramfs and modules are, what GRUB's
configuration is called and made of, what kdump is configured by. The scripts in
``system/`` are these imitations.

Fedora
    Debian's GRUB has no module ``blscfg``: what boots this host reads the entry of the Boot
    Loader Specification in its place, before every boot, and starts the kernel by QEMU.
openSUSE
    ``grub2-mkconfig`` is GRUB's own, without Debian's loop over ``/etc/default/grub.d``.
Gentoo
    OpenRC with its own init as process 1, beside a systemd that does not run; services that Debian's package of OpenRC
    lacks (``root``, ``localmount``, ``bootmisc``, ``udev``) are a few lines each.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from postpanic.rehearse.cache import build_once, digest_file, digest_recipe
from postpanic.rehearse.store import PackageStore
from tests.vm.host_disk import SUITES
from tests.vm.lab import Lab
from tests.vm.system_debian import change_in_guest, fetch_system

__all__ = ["FEDORA", "GENTOO", "SUSE", "Variant", "fetch_variant"]

SYSTEM_DIR = Path(__file__).parent / "system"


@dataclass(frozen=True)
class Variant:
    """
    A layout.

    Attributes
    ----------
    name : str
        Of the entry in the cache, and of the script.
    files : tuple of str
        Below ``system/``; the script finds them in ``/root``.
    packages : tuple of str
        Of Debian; the script finds them in ``/root/packages``.
    """

    name: str
    files: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()


FEDORA = Variant("fedora")
SUSE = Variant("suse")
GENTOO = Variant(
    "gentoo",
    tuple(f"openrc/{name}" for name in ("root", "localmount", "bootmisc", "udev", "lab-steps")),
    ("openrc", "libeinfo1", "librc1", "insserv"),
)


def fetch_variant(lab: Lab, variant: Variant) -> Path:
    """
    Return the disk of a host of that layout, from the cache or made now. It is not to be written to.

    Raises
    ------
    PostpanicError
        If its base or itself cannot be made.
    """
    base = fetch_system(lab)
    script = f"{variant.name}.sh"
    own = {f"/root/{name}": SYSTEM_DIR / name for name in (script, *variant.files)}
    key = [base.parent.name, variant.packages, *map(digest_file, own.values())]

    def build(target: Path) -> None:
        lab.say(f"laying a host out as one of {variant.name}")
        files: dict[str, str | bytes | Path] = {**own}
        if variant.packages:
            archive = PackageStore(lab.cache_dir, "unpacked").open_archive(SUITES)
            archive.update()
            packages = archive.find("|".join(map(re.escape, variant.packages)))
            files |= {f"/root/packages/{path.name}": path for path in archive.fetch_all(packages, target)}
        commands = (f"sh -ex /root/{script}", f"rm -rf /root/{script} /root/openrc /root/packages")
        change_in_guest(lab, base, target, commands, files)
        for path in target.glob("*.deb"):
            path.unlink()

    return build_once(lab.cache_dir / "hosts", f"whole-{variant.name}-{digest_recipe(key)}", build) / "root.img"
