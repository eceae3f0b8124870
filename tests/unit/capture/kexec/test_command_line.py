from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postpanic.capture.kexec.command_line import (
    LIMIT_BYTES,
    CommandLineChanges,
    build_command_line,
    quote_parameter,
    split_command_line,
    word_name,
)
from postpanic.errors import NotReadyError, UsageError

DEBIAN = (
    "BOOT_IMAGE=/boot/vmlinuz-6.1.0-40-amd64 root=UUID=6f0c ro console=tty0 console=ttyS0,115200n8 quiet splash "
    "crashkernel=384M-:128M panic=-1 hugepagesz=1G hugepages=16 intel_iommu=on isolcpus=2-7 nmi_watchdog=1"
)


def build(line: str = DEBIAN, machine: str = "x86_64", **changes: object) -> list[str]:
    return split_command_line(build_command_line(line, machine, CommandLineChanges(**changes)).text)  # type: ignore[arg-type]


def test_what_the_host_needs_goes_and_what_finds_hardware_stays() -> None:
    result = build_command_line(DEBIAN, "x86_64")
    words = split_command_line(result.text)
    assert words[:3] == ["console=tty0", "console=ttyS0,115200n8", "intel_iommu=on"]
    assert set(result.removed) == set(split_command_line(DEBIAN)) - set(words[:3])
    assert set(result.added) == set(words[3:])
    for word in (
        "nr_cpus=1",
        "irqpoll",
        "reset_devices",
        "PYTHONHASHSEED=0",
        "panic=10",
        "rootfstype=ramfs",
        "novmcoredd",
    ):
        assert words.count(word) == 1


def test_consoles_keep_their_order_and_the_last_stays_last() -> None:
    words = build("console=ttyS0 console=tty0 console=ttyS0")
    assert [word for word in words if word.startswith("console=")] == ["console=tty0", "console=ttyS0"]


def test_each_machine_has_its_own_savers() -> None:
    assert "swiotlb=noforce" in build(machine="aarch64")
    assert "numa=off" not in build(machine="aarch64")
    assert "numa=off" in build(machine="x86_64")
    assert "irqpoll" in build(machine="riscv64")


def test_without_savers_only_what_is_needed_is_added() -> None:
    result = build_command_line("", "x86_64", CommandLineChanges(save_memory=False))
    assert split_command_line(result.text) == [
        *("irqpoll", "reset_devices", "rootfstype=ramfs", "PYTHONHASHSEED=0", "nr_cpus=1", "panic=10")
    ]


def test_hosts_own_words_of_a_parameter_that_we_set_give_way() -> None:
    words = build("nr_cpus=8 transparent-hugepage=always numa=on panic=30")
    assert [word for word in words if word_name(word) in ("nr_cpus", "transparent_hugepage", "numa", "panic")] == [
        *("nr_cpus=1", "panic=10", "transparent_hugepage=never", "numa=off")
    ]


def test_calls_that_the_host_leaves_out_are_left_out_too() -> None:
    words = build_command_line("initcall_blacklist=sick_driver_init quiet", "x86_64").text.split()
    assert [word for word in words if word.startswith("initcall_blacklist=")] == [
        "initcall_blacklist=sick_driver_init",
        "initcall_blacklist=tracer_init_tracefs",
    ]


def test_appended_words_come_last_and_replace_ours() -> None:
    words = build(append='nr_cpus=4 dyndbg="module nvme +p" console=ttyS1')
    assert words[-3:] == ["nr_cpus=4", 'dyndbg="module nvme +p"', "console=ttyS1"]
    assert "nr_cpus=1" not in words
    assert "console=tty0" in words, "consoles are added, not replaced"


def test_removing_by_name_and_by_word() -> None:
    words = build(remove=("console=tty0", "irqpoll", "mce", "transparent-hugepage"))
    assert "console=tty0" not in words
    assert "console=ttyS0,115200n8" in words
    assert not {"irqpoll", "mce=off", "transparent_hugepage=never"} & set(words)
    assert "nokaslr" in words


def test_replacement_is_taken_as_it_is() -> None:
    result = build_command_line(DEBIAN, "x86_64", CommandLineChanges(replace="a  b=c", append="d", remove=("a",)))
    assert (result.text, result.added, result.removed) == ("a b=c", (), ())


def test_arguments_of_init() -> None:
    words = build("quiet -- single", init_arguments=("--plan", "/etc/plan"))
    assert words[-3:] == ["--", "--plan", "/etc/plan"]
    assert "single" not in words, "it was for the host's init"


def test_several_processors_leave_out_the_one_the_host_booted_on() -> None:
    line = build_command_line("", "x86_64", CommandLineChanges(cpus=4), boot_apic_id=2).text
    assert "nr_cpus=4" in line
    assert "disable_cpu_apicid=2" in line
    assert "disable_cpu_apicid" not in build_command_line("", "x86_64", boot_apic_id=2).text


def test_too_long_says_what_is_long() -> None:
    with pytest.raises(
        NotReadyError, match=rf"has \d{{4}} bytes, {LIMIT_BYTES} fit; the longest words: 'dyndbg=xx"
    ) as caught:
        build("dyndbg=" + "x" * LIMIT_BYTES)
    assert "command_line_remove" in caught.value.hint


@pytest.mark.parametrize("changes", [{"append": 'a="b'}, {"replace": 'a="b'}, {"cpus": 0}])
def test_what_cannot_be_spelled_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        build(**changes)  # type: ignore[arg-type]


def test_quotes() -> None:
    assert quote_parameter("a", "b") == "a=b"
    assert quote_parameter("a", "b c") == 'a="b c"'
    with pytest.raises(UsageError, match="double quote"):
        quote_parameter("a", 'b"c')
    assert split_command_line('"a=b c" d') == ['"a=b c"', "d"]
    assert word_name('"a-x=b c"') == "a_x"
    assert split_command_line('open="to the end') == ['open="to the end']


@given(
    st.text(alphabet='ab="- \t.', max_size=60), st.lists(st.sampled_from(["a", "b", "irqpoll", "nr_cpus"]), max_size=3)
)
def test_any_host_line_makes_words_that_are_split_again_alike(line: str, remove: list[str]) -> None:
    result = build_command_line(line, "x86_64", CommandLineChanges(remove=tuple(remove)))
    words = split_command_line(result.text)
    for name in remove:
        assert name not in {word_name(word) for word in words}
    if '"' not in line:
        assert " ".join(words) == result.text
        assert len([word for word in words if word_name(word) == "panic"]) == 1


@given(st.lists(st.from_regex(r'[a-z]{1,4}(=("[a-z ]{0,5}"|[a-z]{0,5}))?', fullmatch=True)))
def test_splitting_undoes_joining(words: list[str]) -> None:
    assert split_command_line("  ".join(words)) == words
