/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Copy /proc/kcore of the running machine to a disk, without the gaps of its address space.
 *
 * The disk gets a table of three 64-bit words each: offset in kcore, offset on the disk, size; the first entry is
 * for the headers, its last word but one for the size that stat() tells. The table ends with a size of zero.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define BLOCK (1 << 20)
#define MAX_ENTRIES 256

/* Written without the page cache, which would take the memory that is looked at. */
#define ALIGNED __attribute__((aligned(4096)))

static char block[BLOCK] ALIGNED;
static char head[BLOCK] ALIGNED;

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static void copy(int from, uint64_t source, int to, uint64_t target, uint64_t size)
{
	while (size) {
		ssize_t part = pread(from, block, size < BLOCK ? size : BLOCK, source);

		if (part <= 0)
			fail("read");
		if (pwrite(to, block, part, target) != part)
			fail("write");
		source += part;
		target += part;
		size -= part;
	}
}

int main(int argc, char **argv)
{
	static uint64_t table[MAX_ENTRIES][3] ALIGNED;
	uint64_t at = 2 * BLOCK, first = UINT64_MAX;
	int count = 1, kcore, disk;
	struct stat status;
	Elf64_Ehdr *elf = (Elf64_Ehdr *)head;
	Elf64_Phdr *segment;

	if (argc != 3)
		return 64;
	kcore = open(argv[1], O_RDONLY);
	disk = open(argv[2], O_WRONLY | O_DIRECT);
	if (kcore < 0 || disk < 0 || fstat(kcore, &status) || pread(kcore, head, BLOCK, 0) <= 0)
		fail("open");
	segment = (Elf64_Phdr *)(head + elf->e_phoff);
	for (int number = 0; number < elf->e_phnum; number++, segment++) {
		if (segment->p_type != PT_LOAD)
			continue;
		if (segment->p_offset < first)
			first = segment->p_offset;
		if (segment->p_paddr == UINT64_MAX || count == MAX_ENTRIES - 1)
			continue;
		table[count][0] = segment->p_offset;
		table[count][1] = at;
		table[count][2] = segment->p_filesz;
		copy(kcore, segment->p_offset, disk, at, segment->p_filesz);
		at += (segment->p_filesz + BLOCK - 1) & ~(uint64_t)(BLOCK - 1);
		count++;
	}
	table[0][0] = status.st_size;
	table[0][1] = BLOCK;
	table[0][2] = first < BLOCK ? first : BLOCK;
	if (pwrite(disk, head, BLOCK, BLOCK) < 0 || pwrite(disk, table, sizeof(table), 0) < 0 || fsync(disk))
		fail("write");
	printf("kcore: %d segments, %lld bytes\n", count - 1, (long long)status.st_size);
	return 0;
}
