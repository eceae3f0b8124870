"""From the machine to the host: ranges that hold what is known, and say what is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from postpanic.capture.config import decode_config
from postpanic.capture.host import Host
from postpanic.rehearse.extrapolation import extrapolate
from postpanic.rehearse.rehearsal import RehearsalOutcome

MIB = 1 << 20
OUTCOME = RehearsalOutcome(
    links=(),
    seconds=16.0,
    start_seconds=6.0,
    dump_bytes=40 * MIB,
    kept_bytes=100 * MIB,
    memory_bytes=1184 * MIB,
    reserved_bytes=160 * MIB,
)
CONFIG = decode_config(b"", "x")
MEMINFO = "MemTotal: 16777216 kB\nMemFree: 8388608 kB\nCached: 4194304 kB\nAnonPages: 2097152 kB\n"


def make_host(tmp_path: Path) -> Host:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(MEMINFO)
    return Host(tmp_path, "x86_64", "6.1.0")


def test_a_host_whose_memory_is_known(tmp_path: Path) -> None:
    found = extrapolate(OUTCOME, CONFIG, make_host(tmp_path), 31)
    assert found is not None
    # 16 GiB, of which 14 are free, cache, or of processes; the machine's dump was compressed to 40 %.
    assert found.memory_bytes == 16384 * MIB
    assert found.dump_bytes.most == 2048 * MIB
    assert found.dump_bytes.likely is not None
    assert abs(found.dump_bytes.likely - 0.4 * 2048 * MIB) < MIB
    assert found.dump_bytes.least == found.dump_bytes.likely / 2
    assert found.seconds.likely is not None
    assert found.seconds.least <= found.seconds.likely <= found.seconds.most
    # 20 times the dump in all likelihood, 16 times the memory: the slower of the two counts.
    assert abs(found.seconds.likely - (6 + 10 * 2048 * 0.4 / 40)) < 1
    assert any("emulated" in text for text in found.basis)
    assert not any(
        "emulated" in text
        for text in (extrapolate(OUTCOME, CONFIG, Host(tmp_path), 31, is_emulated=False) or found).basis
    )


def test_a_host_of_which_only_the_size_is_known(tmp_path: Path) -> None:
    found = extrapolate(OUTCOME, CONFIG, Host(tmp_path), 31, memory_bytes=65536 * MIB)
    assert found is not None
    assert found.dump_bytes.likely is None
    assert found.seconds.likely is None
    assert 40 * MIB < found.dump_bytes.least < found.dump_bytes.most == 65536 * MIB


def test_nothing_is_made_up(tmp_path: Path) -> None:
    assert extrapolate(OUTCOME, CONFIG, Host(tmp_path), 31) is None
    host = make_host(tmp_path)
    for nothing in (replace(OUTCOME, dump_bytes=0), replace(OUTCOME, kept_bytes=0), replace(OUTCOME, seconds=0.0)):
        assert extrapolate(nothing, CONFIG, host, 31) is None
