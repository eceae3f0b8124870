// SPDX-License-Identifier: GPL-2.0
/*
 * swapped: pages on a swap device, and the kernel's own word on where.
 *
 * Writes pages with a text of their own, has them swapped out, prints where each is
 * (/proc/self/pagemap, Documentation/admin-guide/mm/pagemap.rst); one page more is there
 * and must not be touched, one never was. Then it stays.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGES 64
#define PAGE_OUT 21
#define SWAPPED (1ULL << 62)

static void fill(char *page, size_t size, int number)
{
	for (size_t at = 0; at < size; at += 64)
		snprintf(page + at, 64, "page %d at %zu of the swapped area", number, at);
}

int main(void)
{
	size_t size = sysconf(_SC_PAGESIZE);
	char *area = mmap(NULL, (PAGES + 2) * size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int map = open("/proc/self/pagemap", O_RDONLY), count = 0;
	uint64_t entry;

	if (area == MAP_FAILED || madvise(area, (PAGES + 2) * size, MADV_NOHUGEPAGE)) {
		if (errno != EINVAL) {
			fprintf(stderr, "lab: failed: swapped: %s\n", strerror(errno));
			return 1;
		}
	}
	for (int i = 0; i <= PAGES; i++)
		fill(area + i * size, size, i);
	mprotect(area + PAGES * size, size, PROT_NONE);
	for (int round = 0; round < 20 && count < PAGES; round++) {
		if (madvise(area, PAGES * size, PAGE_OUT)) {
			fprintf(stderr, "lab: failed: swapped: %s\n", strerror(errno));
			return 1;
		}
		usleep(100000);
		count = 0;
		for (int i = 0; i < PAGES && map >= 0; i++)
			if (pread(map, &entry, 8, (uintptr_t)(area + i * size) / size * 8) == 8 && entry & SWAPPED)
				count++;
	}
	printf("lab: swapped area %d %lx %zu\n", getpid(), (unsigned long)area, size);
	for (int i = 0; i < PAGES && map >= 0; i++)
		if (pread(map, &entry, 8, (uintptr_t)(area + i * size) / size * 8) == 8 && entry & SWAPPED)
			printf("lab: swapped page %d %d %lld\n", i, (int)(entry & 31), (long long)(entry >> 5 & ((1ULL << 50) - 1)));
	printf("lab: swapped end\n");
	fflush(stdout);
	for (;;)
		pause();
}
