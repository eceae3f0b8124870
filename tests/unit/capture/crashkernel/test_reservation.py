from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from postpanic.capture.crashkernel.estimate import CaptureNeeds, MeasuredNeed, estimate
from postpanic.capture.crashkernel.needs import read_measured
from postpanic.capture.crashkernel.reservation import (
    explain_request,
    has_cma,
    read_features,
    read_memory,
    read_reservation,
)
from postpanic.capture.crashkernel.shrink import check_shrink, shrink
from postpanic.capture.host import Host
from postpanic.capture.rehearsals import Rehearsal, take_fingerprint, write_rehearsal
from postpanic.errors import NotReadyError, UsageError

M, G = 1 << 20, 1 << 30
IOMEM = """\
00001000-0009fbff : System RAM
00100000-3ffd9fff : System RAM
  2f000000-3effffff : Crash kernel
100000000-23fffffff : System RAM
240000000-2ffffffff : System RAM (kmem)
"""


def make_host(root: Path, release: str = "6.1.0", machine: str = "x86_64", **files: str) -> Host:
    for name, content in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return Host(root, machine, release)


def test_memory_that_drivers_add_comes_later(tmp_path: Path) -> None:
    found = read_memory(make_host(tmp_path, proc__iomem=IOMEM))
    assert found.total_bytes == 0x9FC00 - 0x1000 + 0x3FFDA000 - 0x100000 + 0x140000000
    assert "iomem" in found.evidence
    hidden = make_host(
        tmp_path / "b", proc__iomem="00000000-00000000 : System RAM\n", proc__meminfo="MemTotal: 4000 kB\n"
    )
    assert read_memory(hidden).total_bytes == 4000 << 10


def test_what_is_reserved_and_what_was_asked(tmp_path: Path) -> None:
    host = make_host(
        tmp_path,
        proc__iomem=IOMEM,
        proc__cmdline="ro crashkernel=256M\n",
        sys__kernel__kexec_crash_size="134217728\n",
        sys__kernel__kexec_crash_loaded="0\n",
    )
    found = read_reservation(host)
    assert (found.reserved_bytes, found.request.size_bytes, found.is_loaded) == (128 * M, 256 * M, False)
    assert found.difference == "256.0 MiB asked for, 128.0 MiB left: it was shrunk"
    (tmp_path / "sys/kernel/kexec_crash_size").write_text("0\n")
    assert "nothing reserved" in read_reservation(host).difference
    (tmp_path / "proc/cmdline").write_text("ro\n")
    assert read_reservation(host).difference == ""


def test_what_a_kernel_knows(tmp_path: Path) -> None:
    assert not read_features(make_host(tmp_path)).cma
    assert read_features(make_host(tmp_path, "6.17.0")).cma
    assert read_features(make_host(tmp_path, "7.2.13+deb14")).cma
    assert not read_features(make_host(tmp_path, machine="s390x")).high
    new = make_host(tmp_path, "6.17.0", boot__config="")
    assert not has_cma(new), "its build is not known"
    (tmp_path / "boot/config-6.17.0").write_text("CONFIG_CMA=y\n")
    assert has_cma(new)
    assert not has_cma(Host(tmp_path, "s390x", "6.17.0"))
    assert has_cma(make_host(tmp_path / "lent", "7.2.0", "aarch64", sys__kernel__kexec__crash_cma_ranges="1000-1fff\n"))
    config = 'CONFIG_CRASH_AUTO_STR="1G-:256M"\n# CONFIG_ARCH_HAS_GENERIC_CRASHKERNEL_RESERVATION is not set\n'
    (tmp_path / "boot/config-4.18.0").write_text(config)
    found = read_features(make_host(tmp_path, "4.18.0"))
    assert (found.auto, found.high) == ("1G-:256M", False)


def test_sentences(tmp_path: Path) -> None:
    host = make_host(tmp_path, proc__iomem=IOMEM, proc__cmdline="crashkernel=1G,high\n")
    (line,) = explain_request(read_reservation(host).request, "x86_64")
    assert line.startswith("1.0 GiB above 4 GiB and 256.0 MiB below")
    host = make_host(tmp_path, proc__iomem=IOMEM, proc__cmdline="crashkernel=4G-8G:300M\n")
    (line,) = explain_request(read_reservation(host).request, "x86_64")
    assert line.startswith("300.0 MiB, by the range from 4.0 GiB to 8.0 GiB of memory")


def needs(kernel_mib: float, memory: int = G) -> CaptureNeeds:
    return CaptureNeeds(
        int(kernel_mib * M), int(6.3 * M), int(18.5 * M), host_memory_bytes=memory, release="6.1.0-56-amd64"
    )


@pytest.mark.parametrize(("kernel_mib", "smallest_mib"), [(51.47, 92), (63.6, 108)])
def test_the_estimate_is_near_what_was_found_by_trying(kernel_mib: float, smallest_mib: int) -> None:
    found = estimate(needs(kernel_mib))
    assert smallest_mib - 1 <= found.least_bytes / M <= smallest_mib + 8
    assert found.recommended_bytes >= (smallest_mib + 24) * M
    assert found.recommended_bytes <= 160 * M
    assert found.words == (f"{found.recommended_bytes // M}M",)
    assert sum(part.size_bytes for part in found.parts) == found.least_bytes


# Debian's cloud kernels 6.1, 6.12 and 7.2, and 6.12 with pages of 16 KiB: emulated machines, one disk.
@pytest.mark.parametrize(
    ("kernel_mib", "image_mib", "page_bytes", "smallest_mib"),
    [(26.7, 16.7, 4096, 72), (30.4, 16.5, 4096, 84), (37.8, 16.5, 4096, 96), (37.7, 18.4, 16384, 92)],
)
def test_the_estimate_for_arm64_is_near_what_was_found_by_trying(
    kernel_mib: float, image_mib: float, page_bytes: int, smallest_mib: int
) -> None:
    found = estimate(
        CaptureNeeds(
            int(kernel_mib * M),
            int(5.7 * M),
            int(image_mib * M),
            host_memory_bytes=G,
            page_bytes=page_bytes,
            machine="aarch64",
        )
    )
    assert smallest_mib - 1 <= found.least_bytes / M <= smallest_mib + 16
    assert smallest_mib + 24 <= found.recommended_bytes / M <= 160


def test_large_machines_need_more_and_get_it_above() -> None:
    sizes = [estimate(needs(63.6, memory)).recommended_bytes for memory in (G, 1 << 38, 1 << 40, 1 << 42)]
    assert sizes == sorted(sizes)
    assert sizes[2] > sizes[0] + 128 * M
    assert estimate(needs(63.6, 1 << 43)).words[1] == "256M,low"


def test_a_rehearsal_counts_more_than_an_estimate() -> None:
    found = estimate(needs(63.6), MeasuredNeed(smallest_bytes=120 * M, release="6.1.0-56-amd64", when="2026-01-02"))
    assert (found.least_bytes, found.is_measured) == (120 * M, True)
    assert "2026-01-02" in found.parts[0].evidence
    other = estimate(needs(63.6), MeasuredNeed(smallest_bytes=120 * M, release="6.12.0"))
    assert not other.is_measured
    assert "6.12.0: not counted" in other.remarks[-1]


def test_the_record_of_a_rehearsal(tmp_path: Path) -> None:
    host = make_host(tmp_path, boot__vmlinuz="", release="6.1.0")
    kernel = tmp_path / "boot/vmlinuz-6.1.0"
    kernel.write_bytes(b"kernel")
    place = tmp_path / "var/lib/postpanic/rehearsal.json"
    assert read_measured(host, "6.1.0") == (None, "")
    fingerprint = take_fingerprint(kernel, b"image", "ro", (), 256 * M)
    good = Rehearsal(when="2026-01-02T03:04:05Z", verdict="proven", fingerprint=fingerprint, needed_bytes=112 * M)
    write_rehearsal(place, good)
    measured, remark = read_measured(host, "6.1.0")
    assert (measured, remark) == (MeasuredNeed(112 * M, 0, "6.1.0", good.when), "")
    kernel.write_bytes(b"another")
    assert read_measured(host, "6.1.0") == (
        None,
        f"the rehearsal of {good.when} does not count: it was of another kernel",
    )
    write_rehearsal(place, Rehearsal(when=good.when, verdict="broken", broken_link="the disk was full", peak_bytes=M))
    assert read_measured(host, "6.1.0")[1].endswith("does not count: the disk was full")


def test_cma_is_offered_only_where_it_is_known() -> None:
    assert not any("cma" in words for words, _ in estimate(needs(63.6)).alternatives)
    (words,) = [words for words, _ in estimate(needs(63.6), knows_cma=True).alternatives if "cma" in words]
    assert words == "crashkernel=112M crashkernel=48M,cma"


def test_shrinking_is_refused_in_words(tmp_path: Path) -> None:
    host = make_host(tmp_path, sys__kernel__kexec_crash_size=f"{256 * M}\n")
    assert check_shrink(host, 128 * M) == 256 * M
    with pytest.raises(UsageError, match=r"256\.0 MiB is not less than the 256\.0 MiB"):
        check_shrink(host, 256 * M)
    with pytest.raises(UsageError, match=r"64\.0 MiB is too little: the capture kernel needs 100\.0 MiB"):
        check_shrink(host, 64 * M, least_bytes=100 * M)
    assert check_shrink(host, 0, least_bytes=100 * M) == 256 * M
    with pytest.raises(NotReadyError, match="only root"):
        check_shrink(Host(tmp_path, "x86_64", "6.1.0", is_root=False), 0)
    (tmp_path / "sys/kernel/kexec_crash_size").write_text("0\n")
    with pytest.raises(NotReadyError, match="no memory is reserved"):
        check_shrink(host, 0)


def test_shrinking_writes_the_size_once(tmp_path: Path) -> None:
    host = make_host(tmp_path, sys__kernel__kexec__crash_size=f"{256 * M}\n", sys__kernel__kexec_crash_size="1\n")
    (tmp_path / "sys/kernel/kexec/crash_size").write_text("999999999\n")
    outcome = shrink(host, 128 * M)
    assert (outcome.before_bytes, outcome.after_bytes) == (999999999, 128 * M)


@pytest.mark.parametrize(
    ("code", "loaded", "message"),
    [
        (errno.ENOENT, "1", "a capture kernel is loaded"),
        (errno.EBUSY, "0", "another load"),
        (errno.EINVAL, "0", "refuses"),
    ],
)
def test_the_kernels_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, loaded: str, message: str
) -> None:
    host = make_host(tmp_path, sys__kernel__kexec_crash_size="4096\n", sys__kernel__kexec_crash_loaded=loaded)

    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "write", refuse)
    with pytest.raises(NotReadyError, match=message):
        shrink(host, 0)
