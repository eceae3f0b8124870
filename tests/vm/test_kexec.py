"""Capture kernels loaded, verified and refused by real kernels."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from postpanic.rehearse.kernels import Kernel
from tests.builders.boot_images import build_arm64_image, build_bzimage
from tests.vm.hosts import HOST_DIR, run_on_host
from tests.vm.lab import Lab

PROBE = "PYTHONPATH=/opt/host/src python3 /root/kexec_probe.py "
INITRD = b"070701" + b"what an initramfs has" * 200_000

Run = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def on_host(crash_lab: Lab, fetch_kernel: Callable[[str], Kernel]) -> Run:
    """Return a function that runs commands on a host and gives what the probe says, of each of its commands."""

    def run(
        key: str, commands: Sequence[str], *, files: Mapping[str, bytes] | None = None, **options: str
    ) -> list[Any]:
        kernel = fetch_kernel(key)
        image = f"/boot/vmlinuz-{kernel.release}"
        words = [command.replace("KERNEL", image) for command in commands]
        contents = {"/root/kexec_probe.py": HOST_DIR / "kexec_probe.py", "/initrd": INITRD, **(files or {})}
        results = run_on_host(crash_lab, key, words, files=contents, **options)  # type: ignore[arg-type]
        for result in results:
            assert result.status == 0, f"{result.command}: {result.stderr}"
        return [json.loads(result.stdout) for result in results if result.command.startswith(PROBE)]

    return run


@pytest.mark.parametrize("key", ["6.1", pytest.param("6.12", marks=pytest.mark.matrix)])
def test_loads_are_verified_replaced_and_unloaded(on_host: Run, key: str) -> None:
    found = on_host(
        key,
        [
            f"{PROBE} load file KERNEL /initrd",
            f"{PROBE} verify KERNEL /initrd",
            f"{PROBE} load legacy KERNEL /initrd",
            f"{PROBE} verify KERNEL /initrd",
            f"{PROBE} load auto KERNEL -",
            # Hides addresses from root, too.
            "echo 2 >/proc/sys/kernel/kptr_restrict",
            f"{PROBE} verify KERNEL -",
            f"{PROBE} unload",
            f"{PROBE} unload",
            f"{PROBE} verify KERNEL /initrd",
        ],
    )
    by_file, seen_file, by_program, seen_program, bare, seen_bare, gone, again, nothing = found
    assert by_file == {"method": "file", "replaced": False, "remarks": [], "loaded": True}
    assert by_program["method"] == "legacy"
    assert by_program["replaced"]
    assert (bare["method"], bare["replaced"]) == ("file", True)
    for seen in (seen_file, seen_program, seen_bare):
        assert seen["outcome"] == "good", seen
    # The program's header has the low 640 KiB, which the kernel's leaves out.
    assert seen_file["checks"]["core header"][1].split(", ")[1] == "2 loads"
    assert seen_program["checks"]["core header"][1].split(", ")[1] == "3 loads"
    assert gone == {"unloaded": True, "loaded": False}
    assert again == {"unloaded": False, "loaded": False}
    assert nothing["checks"] == {"loaded": ["bad", "no capture kernel is loaded"]}


def test_wrong_loads_are_seen(on_host: Run) -> None:
    """Loads that the kernel takes, though they could never save a dump, or not the whole of it."""
    by_program = "kexec -p -c --initrd=/other --command-line='console=ttyS0 nr_cpus=1' KERNEL"
    # The program believes these files; the kernel knows better.
    lied_to = "mount --bind /tmp/lie {0} && " + by_program + "; umount {0}"
    found = on_host(
        "6.1",
        [
            by_program,
            f"{PROBE} verify KERNEL /other",
            "sed s/^00100000-/08000000-/ /proc/iomem >/tmp/lie; " + lied_to.format("/proc/iomem"),
            f"{PROBE} verify KERNEL /other",
            "echo 5000 1000 >/tmp/lie; " + lied_to.format("/sys/kernel/vmcoreinfo"),
            f"{PROBE} verify KERNEL /other",
            f"{PROBE} load file KERNEL /initrd",
            f"{PROBE} verify KERNEL /other",
            "cat KERNEL >/root/changed; printf x | dd of=/root/changed bs=1 seek=5000000 conv=notrunc",
            f"{PROBE} verify /root/changed /initrd",
        ],
        files={"/other": b"another" * 1000},
    )
    foreign, less_memory, no_vmcoreinfo, _, other_initrd, other_kernel = found
    assert _find_bad(foreign) == {"command line"}
    assert _find_bad(less_memory) == {"command line", "memory"}
    assert "not in the dump: 0x100000-0x7ffffff" in less_memory["checks"]["memory"][1]
    assert _find_bad(no_vmcoreinfo) == {"command line", "notes"}
    assert "no VMCOREINFO" in no_vmcoreinfo["checks"]["notes"][1]
    assert _find_bad(other_initrd) == {"initramfs"}
    assert _find_bad(other_kernel) == {"kernel"}
    assert "overwritten" in other_kernel["checks"]["kernel"][1]


def _find_bad(seen: dict[str, Any]) -> set[str]:
    assert seen["outcome"] == "bad"
    return {name for name, (outcome, _) in seen["checks"].items() if outcome == "bad"}


def test_every_refusal_has_its_reason(on_host: Run) -> None:
    found = on_host(
        "6.12",
        [
            f"{PROBE} load file KERNEL /initrd",
            f"{PROBE} load file /garbage /initrd",
            f"{PROBE} load file /bzimage /initrd",
            f"{PROBE} load file /arm64 /initrd",
            f"{PROBE} load legacy /bzimage /initrd",
            f"{PROBE} load file KERNEL /large",
            f"{PROBE} load file KERNEL /missing",
            f"{PROBE} load file KERNEL /empty",
            f"{PROBE} load file KERNEL /initrd",
            "echo 1 >/proc/sys/kernel/kexec_load_disabled",
            f"{PROBE} load file KERNEL /initrd",
            f"{PROBE} unload",
        ],
        files={
            "/garbage": b"no kernel " * 5000,
            # Looks like one up to the point where a loader reads on.
            "/bzimage": _make_wrong_bzimage(),
            "/arm64": build_arm64_image(bytes(8192)),
            "/large": bytes(60 << 20),
            "/empty": b"",
        },
        crashkernel="96M",
    )
    good, garbage, wrong, arm64, program, large, missing, empty, _, disabled, kept = found
    assert good["loaded"]
    assert "not a kernel" in garbage["error"]
    assert garbage["loaded"], "what was loaded stays when the new one is refused beforehand"
    assert wrong["code"] == "load-refused"
    assert "gone" in wrong["error"]
    assert not wrong["loaded"]
    assert "a kernel for aarch64, this machine is x86_64" in arm64["error"]
    assert program["status"] == 4
    assert "do not fit into the 96.0 MiB" in large["error"]
    assert "60.0 MiB" in large["error"]
    assert "postpanic crashkernel" in large["hint"]
    assert missing["error"].startswith("/missing: cannot read the initramfs")
    assert "empty" in empty["error"]
    for refused in (disabled, kept):
        assert "kexec_load_disabled is 1" in refused["error"]
        assert refused["status"] == 4
        assert refused["loaded"]


def _make_wrong_bzimage() -> bytes:
    # Loaded low, which no boot protocol of 64 bits is: LOADED_HIGH is not set.
    return build_bzimage(bytes(65536))


def test_no_reservation(on_host: Run) -> None:
    (refused,) = on_host("6.1", [f"{PROBE} load file KERNEL /initrd"], crashkernel="4G-:256M")
    assert refused["error"] == "no memory is reserved for a capture kernel: crashkernel=4G-:256M reserved nothing"
    assert refused["status"] == 4


@pytest.mark.parametrize(
    ("key", "lockdown"), [("6.1", "integrity"), pytest.param("6.12", "confidentiality", marks=pytest.mark.matrix)]
)
def test_lockdown_takes_signed_kernels_only(on_host: Run, key: str, lockdown: str) -> None:
    by_program, changed, seen, signed, seen_signed = on_host(
        key,
        [
            f"{PROBE} load legacy KERNEL /initrd",
            # Not what was signed.
            "cat KERNEL >/root/changed; printf x | dd of=/root/changed bs=1 seek=5000000 conv=notrunc",
            f"{PROBE} load file /root/changed /initrd",
            f"{PROBE} verify KERNEL /initrd",
            f"{PROBE} load file KERNEL /initrd",
            f"{PROBE} verify KERNEL /initrd",
        ],
        lockdown=lockdown,
    )
    assert by_program["error"] == f"the kernel is locked down (lockdown={lockdown}): kexec_load is forbidden"
    assert f"lockdown={lockdown}" in changed["error"]
    assert "sign" in changed["error"]
    assert seen["outcome"] == "bad"
    if "error" in signed:
        # The image may come without a signature.
        assert f"lockdown={lockdown}" in signed["error"]
    elif lockdown == "confidentiality":
        assert seen_signed["outcome"] == "unverified"
        assert "lockdown=confidentiality" in json.dumps(seen_signed)
    else:
        assert seen_signed["outcome"] == "good"
