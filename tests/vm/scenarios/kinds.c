// SPDX-License-Identifier: GPL-2.0
/*
 * kinds: pages of every kind that the kernel has, and the kernel's own word on which page is what.
 *
 *   kinds make KIND...    make each, in a process of its own that stays; says "lab: no KIND" where the kernel cannot
 *   kinds pin FILE        keep a file's pages in memory
 *   kinds census FILE     copy /proc/kpageflags to FILE, print how many pages there are of each kind
 *
 * The bits of /proc/kpageflags are those of Documentation/admin-guide/mm/pagemap.rst
 * and include/linux/kernel-page-flags.h.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <arpa/inet.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#define KIB (1UL << 10)
#define MIB (1UL << 20)
#define GIB (1UL << 30)
#define PAGE 4096UL
#define HUGE (2 * MIB)
/* Too new for some C libraries. */
#define LAZY_FREE 8
#define PAGE_OUT 21
#define HW_POISON 100
#define SOFT_OFFLINE 101
#define HUGE_1GB (30 << 26)
#define SYS_MEMFD_SECRET 447

static int absent(const char *kind)
{
	printf("lab: no %s: %s\n", kind, strerror(errno));
	return 1;
}

/* One page in eight is written, and all zeros. */
static void fill(char *area, size_t size, unsigned seed)
{
	for (size_t at = 0; at < size; at += PAGE) {
		if (at / PAGE % 8 == 7) {
			memset(area + at, 0, PAGE);
			continue;
		}
		for (size_t i = 0; i < PAGE; i += 64) {
			seed = seed * 1103515245u + 12345u;
			snprintf(area + at + i, 64, "pid %d page %zu record %u: %08x", getpid(), at / PAGE, seed >> 8, seed);
		}
	}
}

static char *map_aligned(size_t size, int flags)
{
	char *area = mmap(NULL, size + HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);

	return area == MAP_FAILED ? NULL : (char *)(((uintptr_t)area + HUGE - 1) & ~(HUGE - 1));
}

static volatile char sink;

static void read_all(const char *area, size_t size)
{
	for (size_t at = 0; at < size; at += PAGE)
		sink = area[at];
}

static int make_hugetlb(void)
{
	char *area = mmap(NULL, 6 * HUGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);

	if (area == MAP_FAILED)
		return -1;
	fill(area, 4 * HUGE, 1);
	/* Two more, all zeros. */
	area[4 * HUGE] = area[5 * HUGE] = 0;
	return 0;
}

static int make_private_hugetlb(void)
{
	char *area = mmap(NULL, 2 * HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);

	if (area == MAP_FAILED)
		return -1;
	fill(area, 2 * HUGE, 2);
	return 0;
}

static int make_gigantic(void)
{
	char *area = mmap(NULL, GIB, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | HUGE_1GB, -1, 0);

	if (area == MAP_FAILED)
		return -1;
	/* Some in every memory section, the rest stays zeros. */
	for (size_t at = 0; at < GIB; at += 32 * MIB)
		fill(area + at, 256 * KIB, at);
	return 0;
}

static int make_thp(void)
{
	char *area = map_aligned(8 * HUGE, 0);

	if (area == NULL || madvise(area, 8 * HUGE, MADV_HUGEPAGE) < 0)
		return -1;
	fill(area, 6 * HUGE, 3);
	/* A hole in one, a piece of one that is protected otherwise: both are mapped page by page from now on. */
	madvise(area + HUGE + 64 * KIB, 256 * KIB, MADV_DONTNEED);
	mprotect(area + 2 * HUGE + 512 * KIB, PAGE, PROT_READ);
	/* All zeros, but written: a page of its own. */
	area[6 * HUGE] = 0;
	/* Only read: the huge zero page. */
	read_all(area + 7 * HUGE, HUGE);
	return 0;
}

/* Parent and child share it, then one writes to some. */
static int make_shared_thp(void)
{
	char *area = map_aligned(4 * HUGE, 0);

	if (area == NULL || madvise(area, 4 * HUGE, MADV_HUGEPAGE) < 0)
		return -1;
	fill(area, 4 * HUGE, 4);
	if (fork() == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		fill(area, HUGE / 4, 5);
		for (;;)
			pause();
	}
	return 0;
}

static int map_file(const char *path, size_t size)
{
	int fd = open(path, O_RDWR | O_CREAT, 0600);
	char *area;

	if (fd < 0 || ftruncate(fd, size) < 0)
		return -1;
	area = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (area == MAP_FAILED)
		return -1;
	fill(area, size, 6);
	return 0;
}

static int make_huge_tmpfs(void) { return map_file("/mnt/huge/file", 4 * HUGE + 20 * PAGE); }
static int make_hugetlbfs(void)  { return map_file("/dev/hugepages/file", 2 * HUGE); }

/* Out to the swap disk and read again: the copy on the disk stays valid, so the page stays in the swap cache. */
static int make_swap_cache(void)
{
	char *area = mmap(NULL, 12 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (area == MAP_FAILED || madvise(area, 12 * MIB, MADV_NOHUGEPAGE) < 0)
		return -1;
	fill(area, 12 * MIB, 7);
	if (madvise(area, 12 * MIB, PAGE_OUT) < 0)
		return -1;
	/* A third of it stays out. */
	read_all(area, 8 * MIB);
	return 0;
}

static int make_swapped_tmpfs(void)
{
	int fd = memfd_create("swapped", 0);
	char *area;

	if (fd < 0 || ftruncate(fd, 4 * MIB) < 0)
		return -1;
	area = mmap(NULL, 4 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (area == MAP_FAILED)
		return -1;
	fill(area, 4 * MIB, 8);
	if (madvise(area, 4 * MIB, PAGE_OUT) < 0)
		return -1;
	read_all(area, 2 * MIB);
	return 0;
}

static int make_ksm(void)
{
	size_t size = 8 * MIB;
	char *area = mmap(NULL, 2 * size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (area == MAP_FAILED)
		return -1;
	fill(area, size, 9);
	memcpy(area + size, area, size);
	return madvise(area, 2 * size, MADV_MERGEABLE);
}

static int make_lazily_free(void)
{
	char *area = mmap(NULL, 4 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (area == MAP_FAILED || madvise(area, 4 * MIB, MADV_NOHUGEPAGE) < 0)
		return -1;
	fill(area, 4 * MIB, 10);
	return madvise(area, 4 * MIB, LAZY_FREE);
}

static int make_locked(void)
{
	char *area = mmap(NULL, 6 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (area == MAP_FAILED)
		return -1;
	fill(area, 6 * MIB, 11);
	return mlock(area, 6 * MIB);
}

static int make_secret(void)
{
	int fd = syscall(SYS_MEMFD_SECRET, 0);
	char *area;

	if (fd < 0 || ftruncate(fd, MIB) < 0)
		return -1;
	area = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (area == MAP_FAILED)
		return -1;
	fill(area, MIB, 12);
	printf("lab: kind secret 256\n");
	return 0;
}

/* The kernel's own pages in a process's page tables. */
static int make_packet_ring(void)
{
	struct tpacket_req request = { .tp_block_size = 64 * KIB, .tp_block_nr = 16, .tp_frame_size = 2048, .tp_frame_nr = 512 };
	int fd = socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL));
	char *area;

	if (fd < 0 || setsockopt(fd, SOL_PACKET, PACKET_RX_RING, &request, sizeof(request)) < 0)
		return -1;
	area = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (area == MAP_FAILED)
		return -1;
	read_all(area, MIB);
	printf("lab: kind packet-ring 256\n");
	return 0;
}

/* Pages in pipes and socket buffers: the kernel's, with what a process wrote. */
static int make_queued(void)
{
	static char data[MIB];
	int ends[2];

	fill(data, sizeof(data), 13);
	for (int number = 0; number < 8; number++) {
		if (pipe2(ends, O_NONBLOCK) < 0 || fcntl(ends[1], F_SETPIPE_SZ, MIB) < 0)
			return -1;
		if (write(ends[1], data, sizeof(data)) < (ssize_t)PAGE)
			return -1;
		if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends) < 0)
			return -1;
		if (write(ends[1], data, 128 * KIB) < (ssize_t)PAGE)
			return -1;
	}
	return 0;
}

static int make_page_tables(void)
{
	char *area = mmap(NULL, 8 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (area == MAP_FAILED)
		return -1;
	fill(area, 8 * MIB, 14);
	for (int number = 0; number < 150; number++)
		if (fork() == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			read_all(area, 8 * MIB);
			for (;;)
				pause();
		}
	return 0;
}

static void stay(int number)
{
	(void)number;
	for (;;)
		pause();
}

/* Of a page that a process uses the kernel tells it by a signal. */
static int poison(char *area, size_t size, int advice)
{
	signal(SIGBUS, stay);
	return area == MAP_FAILED ? -1 : madvise(area, size, advice);
}

static char *map_filled(size_t size, int flags)
{
	char *area = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);

	if (area != MAP_FAILED)
		fill(area, size, 15);
	return area;
}

static int make_hwpoison_anonymous(void) { return poison(map_filled(4 * PAGE, 0), 2 * PAGE, HW_POISON); }
static int make_soft_offline(void)       { return poison(map_filled(8 * PAGE, 0), 8 * PAGE, SOFT_OFFLINE); }
static int make_hwpoison_hugetlb(void)   { return poison(map_filled(HUGE, MAP_HUGETLB), PAGE, HW_POISON); }

static int make_hwpoison_thp(void)
{
	char *area = map_aligned(HUGE, 0);

	if (area == NULL || madvise(area, HUGE, MADV_HUGEPAGE) < 0)
		return -1;
	fill(area, HUGE, 16);
	return poison(area + 5 * PAGE, PAGE, HW_POISON);
}

static int make_hwpoison_cache(void)
{
	int fd = open("/in/data", O_RDONLY);
	char *area = mmap(NULL, 64 * PAGE, PROT_READ, MAP_SHARED, fd, 0);

	if (area != MAP_FAILED)
		read_all(area, 64 * PAGE);
	return poison(area, 2 * PAGE, HW_POISON);
}

static const struct kind {
	const char *name;
	int (*make)(void);
} kinds[] = {
	{ "hugetlb", make_hugetlb },             { "private-hugetlb", make_private_hugetlb },
	{ "hugetlbfs", make_hugetlbfs },         { "gigantic", make_gigantic },
	{ "thp", make_thp },                     { "shared-thp", make_shared_thp },
	{ "huge-tmpfs", make_huge_tmpfs },       { "swap-cache", make_swap_cache },
	{ "swapped-tmpfs", make_swapped_tmpfs }, { "ksm", make_ksm },
	{ "lazily-free", make_lazily_free },     { "locked", make_locked },
	{ "secret", make_secret },               { "packet-ring", make_packet_ring },
	{ "queued", make_queued },               { "page-tables", make_page_tables },
	{ "hwpoison-anonymous", make_hwpoison_anonymous }, { "soft-offline", make_soft_offline },
	{ "hwpoison-hugetlb", make_hwpoison_hugetlb },     { "hwpoison-thp", make_hwpoison_thp },
	{ "hwpoison-cache", make_hwpoison_cache },
};

/* The signal that tells of a poisoned page comes before madvise() returns: its handler stays, the parent goes on. */
static void become(const struct kind *kind, int end)
{
	char name[16];

	snprintf(name, sizeof(name), "k-%s", kind->name);
	prctl(PR_SET_NAME, name);
	if (strstr(kind->name, "hwpoison")) {
		if (fork() == 0) {
			close(end);
			if (kind->make() < 0)
				absent(kind->name);
			stay(0);
		}
		usleep(200000);
	} else if (kind->make() < 0) {
		absent(kind->name);
	}
	if (write(end, "", 1) != 1)
		_exit(1);
	close(end);
	stay(0);
}

static int make(int count, char **names)
{
	char byte;
	int ends[2];

	for (int number = 0; number < count; number++)
		for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
			if (strcmp(kinds[i].name, names[number]) != 0)
				continue;
			if (pipe(ends) < 0)
				return absent(names[number]);
			if (fork() == 0) {
				close(ends[0]);
				become(&kinds[i], ends[1]);
			}
			close(ends[1]);
			if (read(ends[0], &byte, 1) != 1)
				printf("lab: no %s: it was killed\n", names[number]);
			close(ends[0]);
		}
	return 0;
}

/* The child pins: locked memory is not inherited. */
static int pin(const char *path)
{
	struct stat status;
	char *area;
	int fd;

	if (fork() != 0) {
		usleep(500000);
		return 0;
	}
	fd = open(path, O_RDONLY);
	prctl(PR_SET_NAME, "k-pin");
	if (fd < 0 || fstat(fd, &status) < 0)
		return absent("pin");
	area = mmap(NULL, status.st_size, PROT_READ, MAP_SHARED, fd, 0);
	if (area == MAP_FAILED || mlock(area, status.st_size) < 0)
		return absent("pin");
	stay(0);
	return 0;
}

enum {
	F_DIRTY = 4, F_LRU = 5, F_SLAB = 7, F_WRITEBACK = 8, F_BUDDY = 10, F_MMAP = 11, F_ANON = 12, F_SWAPCACHE = 13,
	F_SWAPBACKED = 14, F_HEAD = 15, F_TAIL = 16, F_HUGE = 17, F_UNEVICTABLE = 18, F_HWPOISON = 19, F_NOPAGE = 20,
	F_THP = 22, F_OFFLINE = 23, F_ZERO_PAGE = 24, F_PGTABLE = 26, F_RESERVED = 32, F_MLOCKED = 33,
	F_PRIVATE = 35,
};

#define BIT(number) (1ULL << (number))

static const struct census {
	const char *name;
	uint64_t all, none;
} censuses[] = {
	{ "dirty", BIT(F_DIRTY), 0 },
	{ "lru", BIT(F_LRU), 0 },
	{ "slab", BIT(F_SLAB), 0 },
	{ "buddy", BIT(F_BUDDY), 0 },
	{ "anonymous", BIT(F_ANON), 0 },
	{ "swap-cache", BIT(F_SWAPCACHE), 0 },
	{ "huge", BIT(F_HUGE), 0 },
	{ "unevictable", BIT(F_UNEVICTABLE), 0 },
	{ "hwpoison", BIT(F_HWPOISON), 0 },
	{ "no-page", BIT(F_NOPAGE), 0 },
	{ "offline", BIT(F_OFFLINE), 0 },
	{ "zero-page", BIT(F_ZERO_PAGE), 0 },
	{ "page-table", BIT(F_PGTABLE), 0 },
	{ "reserved", BIT(F_RESERVED), 0 },
	{ "mlocked", BIT(F_MLOCKED), 0 },
	{ "thp-anonymous", BIT(F_THP) | BIT(F_ANON), 0 },
	{ "thp-shmem", BIT(F_THP) | BIT(F_SWAPBACKED), BIT(F_ANON) },
	{ "huge-zero", BIT(F_THP) | BIT(F_ZERO_PAGE), 0 },
	{ "shmem", BIT(F_LRU) | BIT(F_SWAPBACKED), BIT(F_ANON) },
	{ "lazily-free", BIT(F_LRU) | BIT(F_ANON), BIT(F_SWAPBACKED) },
	{ "cache", BIT(F_LRU), BIT(F_ANON) | BIT(F_SWAPBACKED) },
	{ "private-cache", BIT(F_LRU) | BIT(F_PRIVATE), BIT(F_ANON) | BIT(F_SWAPBACKED) },
	{ "large-cache", BIT(F_LRU) | BIT(F_HEAD), BIT(F_ANON) | BIT(F_SWAPBACKED) },
	{ "kernel-compound", BIT(F_HEAD), BIT(F_LRU) | BIT(F_ANON) | BIT(F_HUGE) | BIT(F_SLAB) },
};

/* A compound page of 1 GiB is a head with as many tails as that takes. */
static size_t count_gigantic(const uint64_t *flags, size_t count)
{
	size_t found = 0, run = 0;

	for (size_t pfn = 0; pfn < count; pfn++) {
		if (flags[pfn] & BIT(F_HUGE) && flags[pfn] & BIT(F_HEAD))
			run = 1;
		else if (flags[pfn] & BIT(F_HUGE) && flags[pfn] & BIT(F_TAIL) && run > 0)
			run++;
		else
			run = 0;
		found += run == GIB / PAGE;
	}
	return found * (GIB / PAGE);
}

static void say(const char *name, size_t pages)
{
	if (pages > 0)
		printf("lab: kind %s %zu\n", name, pages);
	else
		printf("lab: no %s: not a page\n", name);
}

static int census(const char *path)
{
	size_t room = 4 * MIB, size = 0;
	uint64_t *flags = malloc(room * sizeof(*flags));
	int from = open("/proc/kpageflags", O_RDONLY), to = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	ssize_t got = 1;

	if (from < 0 || to < 0 || flags == NULL)
		return absent("census");
	while (size < room * sizeof(*flags) && (got = read(from, (char *)flags + size, MIB)) > 0)
		size += got;
	if (got < 0 || write(to, flags, size) != (ssize_t)size)
		return absent("census");
	for (size_t i = 0; i < sizeof(censuses) / sizeof(censuses[0]); i++) {
		size_t pages = 0;

		for (size_t pfn = 0; pfn < size / sizeof(*flags); pfn++)
			pages += (flags[pfn] & censuses[i].all) == censuses[i].all && (flags[pfn] & censuses[i].none) == 0;
		say(censuses[i].name, pages);
	}
	say("gigantic", count_gigantic(flags, size / sizeof(*flags)));
	return 0;
}

int main(int count, char **words)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (count > 2 && strcmp(words[1], "make") == 0)
		return make(count - 2, words + 2);
	if (count == 3 && strcmp(words[1], "pin") == 0)
		return pin(words[2]);
	if (count == 3 && strcmp(words[1], "census") == 0)
		return census(words[2]);
	fprintf(stderr, "usage: kinds make|pin|census ...\n");
	return 64;
}
