"""``postpanic filter``: makedumpfile's job, with its option letters."""

from __future__ import annotations

from pathlib import Path

import click

from postpanic.cli.verb import Verb

__all__ = ["command"]


@click.command(cls=Verb, name="filter")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path, allow_dash=True), metavar="VMCORE [OUT...]")
@click.option("-c", "use_zlib", is_flag=True, help="Compress pages with zlib.")
@click.option("-l", "use_lzo", is_flag=True, help="Compress pages with lzo.")
@click.option("-p", "use_snappy", is_flag=True, help="Compress pages with snappy.")
@click.option("-z", "use_zstd", is_flag=True, help="Compress pages with zstd: the default.")
@click.option("--uncompressed", "use_raw", is_flag=True, help="Store pages as they are.")
@click.option(
    "--compression-level",
    type=int,
    metavar="N",
    help="Of zlib or zstd, in the codec's own numbers.",
)
@click.option("-d", "level_list", default="0", metavar="LEVELS", help="What to leave out, 0 to 31; the next if full.")
@click.option("-E", "as_elf", is_flag=True, help="Write an ELF file, without compression.")
@click.option("-F", "flattened", is_flag=True, help="Write a flattened stream, to standard output without OUT.")
@click.option("-f", "overwrite", is_flag=True, help="Overwrite OUT.")
@click.option("-L", "limit", metavar="SIZE", help="Let OUT get no larger than this (512M, 10G).")
@click.option("--split", "split", is_flag=True, help="Divide the dump among all OUT files.")
@click.option("--num-threads", "threads", type=click.IntRange(1), metavar="N", help="Default: all processors, up to 8.")
@click.option("--memory", "memory", metavar="SIZE", help="Bound on the memory of pages in flight: 24M.")
@click.option("--order", type=click.Choice(["worth", "frame"]), default="worth", help="What is written first.")
@click.option("--erase", multiple=True, metavar="STRUCT.MEMBER", help="Blot out a member in all objects of a type.")
@click.option("--erase-symbol", multiple=True, metavar="SYMBOL", help="Blot out a variable, or SYMBOL.MEMBER of it.")
@click.option(
    "-x", "vmlinux", type=click.Path(path_type=Path), metavar="VMLINUX", help="Look up what VMCOREINFO lacks."
)
@click.option("-i", "info_file", type=click.Path(path_type=Path), metavar="FILE", help="Take VMCOREINFO from a file.")
@click.option("-g", "generate", type=click.Path(path_type=Path), metavar="FILE", help="Write VMCOREINFO; needs -x.")
@click.option("-R", "rearrange", is_flag=True, help="Make a dump file of a flattened stream on standard input.")
@click.option("--reassemble", is_flag=True, help="Join the files of a split set: as postpanic join.")
@click.option("--dump-dmesg", is_flag=True, help="Write the kernel log, to standard output without OUT.")
@click.option("--partial-dmesg", is_flag=True, help="The same, from the last dmesg -c on.")
@click.option("--mem-usage", is_flag=True, help="Say what each level would leave out of a live kernel (/proc/kcore).")
@click.option("--dry-run", is_flag=True, help="Do everything but write; tells the size of OUT.")
@click.option("--show-stats", is_flag=True, help="Say how many pages were left out, and why.")
@click.option("--check-params", is_flag=True, help="Do nothing but look at the options.")
@click.option("--no-self-test", is_flag=True, help="Do not check that OUT can be worked with.")
@click.option("--no-manifest", is_flag=True, help="Write no OUT.manifest.json, and compute no digest.")
@click.option("--manifest", "manifest_path", type=click.Path(path_type=Path), metavar="FILE", help="Write it there.")
@click.option("--sync", is_flag=True, help="Wait until OUT is on the disk.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON, which is the manifest.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but warnings and errors.")
@click.option("--message-level", type=click.IntRange(0, 31), hidden=True, help="Accepted, as makedumpfile has it.")
@click.option("--cyclic-buffer", "cyclic_kib", type=click.IntRange(1), hidden=True, help="As --memory, in KiB.")
@click.option("--splitblock-size", type=int, hidden=True, help="Accepted, as makedumpfile has it.")
@click.option("--work-dir", hidden=True, help="Accepted, as makedumpfile has it.")
@click.option("-b", "block_order", type=int, hidden=True, help="Accepted, as makedumpfile has it.")
@click.option(
    "--non-mmap", "--non-cyclic", "-D", "ignored", is_flag=True, hidden=True, help="Accepted, without effect."
)
def command(files: tuple[Path, ...], **options: object) -> int:
    """
    Write a smaller dump, as makedumpfile does.

    Pages that nobody needs are left out, the others compressed. OUT is a
    kdump-compressed file that crash, drgn and makedumpfile read, with
    OUT.manifest.json beside it: what was left out and why, sizes, SHA-256. The
    option letters are makedumpfile's.

        postpanic filter -d 31 /proc/vmcore dump
        postpanic filter -d 31 -F /proc/vmcore | ssh host 'cat > dump.flat'
        postpanic filter -d 1,31 -L 2G vmcore dump
        postpanic filter -d 31 --split vmcore part1 part2 part3
        postpanic filter --erase key.payload --erase-symbol 'saved_command_line->' vmcore dump

    Levels (-d) are sums of: 1 pages of zeroes, 2 page cache, 4 page cache with
    private data (and 2), 8 memory of processes, 16 free pages. With several,
    the next is tried when the disk is full or -L is reached.

    Nothing is guessed. What tells pages apart comes from VMCOREINFO; where an
    entry is missing the pages are kept, and a warning says so. A page that
    cannot be read is noted and skipped. The pages a debugger needs most are
    written first: a dump that is cut short by a full disk, a signal or a
    broken pipe is marked incomplete and opens if at all possible.

    Afterwards a self-test proves that OUT holds the kernel's text, the
    crashing task with its stack and page tables, the log, symbols and types.

    Without -d nothing is left out. Pages that a processor or another agent
    marked as poisoned, or as offline, are never read and always left out.

    Exit status: 0 done; 1 OUT is incomplete, the disk being full or the limit
    reached; 2 VMCORE is at fault; 3 pages could not be read, the self-test
    failed, or something to be erased may be left; 64 wrong usage; 130, 143
    interrupted; 141 the reader went away.
    """
    from postpanic.cli.filter_modes import run_mode

    status = run_mode(files, options)
    if status is not None:
        return status
    from postpanic.cli.filter_job import run_job
    from postpanic.cli.filter_options import make_job
    from postpanic.cli.filter_report import report_outcome

    job = make_job(files, options)
    if options["check_params"]:
        return 0
    return report_outcome(
        run_job(job),
        as_json=bool(options["as_json"]),
        quiet=bool(options["quiet"]),
        show_stats=bool(options["show_stats"]),
    )
