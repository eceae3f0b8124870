// SPDX-License-Identifier: GPL-2.0
/*
 * heap: memory with the content of a machine that has been at work for days.
 *
 *   heap hold NAME MIB SEED FILE...   be NAME, hold MIB of heap; returns once it is filled
 *   heap spend MIB SEED FILE...       fill MIB of heap and give it back: free pages with old content
 *   heap files DIRECTORY COUNT        create empty files: inodes and directory entries
 *   heap missing DIRECTORY COUNT      ask for files that are not there: negative directory entries
 *   heap objects NAME COUNT           be NAME, hold sockets, pipes, event counters; returns once they are there
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define MIB (1UL << 20)
#define PAGE 4096UL
#define NODE 48UL
#define PER_PROCESS 4000

static uint64_t state;

static uint64_t next(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

static int fail(const char *what)
{
	fprintf(stderr, "lab: failed: heap: %s: %s\n", what, strerror(errno));
	return 1;
}

/* A file of real content, from a place of our choice on; the next one when it ends. */
static char **sources;
static int source_count;
static const char *source;
static size_t source_size, source_at;

static int open_source(void)
{
	struct stat status;
	int fd;

	if (source != NULL)
		munmap((void *)source, source_size);
	source = NULL;
	for (int tries = 0; tries < 100; tries++) {
		fd = open(sources[next() % source_count], O_RDONLY);
		if (fd < 0 || fstat(fd, &status) < 0)
			return -1;
		source_size = status.st_size & ~(PAGE - 1);
		if (source_size > 0)
			source = mmap(NULL, source_size, PROT_READ, MAP_PRIVATE, fd, 0);
		close(fd);
		if (source_size > 0 && source != MAP_FAILED) {
			source_at = next() % source_size & ~15UL;
			return 0;
		}
	}
	return -1;
}

static void copy_content(char *to, size_t size)
{
	while (size > 0) {
		size_t part;

		if (source == NULL || source_at == source_size)
			if (open_source() < 0)
				return;
		part = source_size - source_at < size ? source_size - source_at : size;
		memcpy(to, source + source_at, part);
		source_at += part;
		to += part;
		size -= part;
	}
}

/* Small objects as an allocator lays them out: a size, pointers to others, counters, a short name. */
static void fill_nodes(char *page, char *area, size_t size)
{
	for (size_t at = 0; at + NODE <= PAGE; at += NODE) {
		uint64_t value = next();
		uint64_t *words = (uint64_t *)(page + at);

		words[0] = NODE | 1;
		words[1] = (uint64_t)(area + value % size / 16 * 16);
		words[2] = value >> 60 ? (uint64_t)(page + (value >> 32) % PAGE / NODE * NODE) : 0;
		words[3] = value >> 58;
		snprintf((char *)(words + 4), 16, "key-%u", (unsigned)(value >> 40) % 10000);
	}
}

static void fill_records(char *page, size_t size)
{
	static const char *const words[] = { "GET", "POST", "/index.html", "/api/v1/items", "200", "404", "user", "session" };
	size_t at = 0;

	while (at + 160 < size) {
		uint64_t value = next();

		at += sprintf(page + at, "{\"time\": \"2024-05-%02u %02u:%02u:%02u\", \"%s\": \"%s\", \"id\": %u}\n",
			      (unsigned)(value % 28) + 1, (unsigned)(value >> 8) % 24, (unsigned)(value >> 16) % 60,
			      (unsigned)(value >> 24) % 60, words[value >> 32 & 7], words[value >> 40 & 7],
			      (unsigned)(value >> 44));
	}
}

static void fill_page(char *page, char *area, size_t size)
{
	unsigned kind = next() % 20;

	if (kind < 6)
		fill_nodes(page, area, size);
	else if (kind < 12)
		copy_content(page, PAGE);
	else if (kind < 15)
		fill_records(page, PAGE);
	else if (kind < 18) /* A buffer of which a part was used. */
		copy_content(page, next() % PAGE & ~15UL);
	else if (kind < 19)
		for (size_t at = 0; at < PAGE; at += 8)
			*(uint64_t *)(page + at) = next() >> 32 | (uint64_t)at << 40;
	/* One page in twenty was asked for and not written. */
	else
		page[0] = 0;
}

static int fill(size_t mib)
{
	size_t size = mib * MIB;
	char *area = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (area == MAP_FAILED)
		return fail("mmap");
	for (size_t at = 0; at < size; at += PAGE)
		fill_page(area + at, area, size);
	return 0;
}

static void seed_with(const char *word, char **files, int count)
{
	state = strtoull(word, NULL, 10) * 0x9e3779b97f4a7c15ULL + 1;
	sources = files;
	source_count = count;
}

/* The child holds on, the parent returns as soon as the child has what it wants. */
static int in_background(const char *name, int (*prepare)(size_t), size_t amount)
{
	int ends[2];
	char byte = 0;
	pid_t pid;

	if (pipe(ends) < 0)
		return fail("pipe");
	pid = fork();
	if (pid < 0)
		return fail("fork");
	if (pid == 0) {
		prctl(PR_SET_NAME, name);
		close(ends[0]);
		byte = (char)prepare(amount);
		if (write(ends[1], &byte, 1) != 1 || byte)
			_exit(1);
		close(ends[1]);
		for (;;)
			pause();
	}
	close(ends[1]);
	return read(ends[0], &byte, 1) == 1 ? byte : 1;
}

static int make_files(const char *directory, int count)
{
	char path[256];

	for (int number = 0; number < count; number++) {
		int fd;

		snprintf(path, sizeof(path), "%s/%d", directory, number / 1000);
		if (number % 1000 == 0 && mkdir(path, 0700) < 0)
			return fail(path);
		snprintf(path, sizeof(path), "%s/%d/session-%08x", directory, number / 1000, number * 2654435761u);
		fd = open(path, O_WRONLY | O_CREAT, 0600);
		if (fd < 0 || close(fd) < 0)
			return fail(path);
	}
	return 0;
}

static int ask_for_missing(const char *directory, int count)
{
	struct stat status;
	char path[256];

	for (int number = 0; number < count; number++) {
		snprintf(path, sizeof(path), "%s/no-such-file-%d", directory, number);
		if (stat(path, &status) == 0)
			return fail(path);
	}
	return 0;
}

static int make_objects(size_t count)
{
	for (size_t number = 0; number < count; number += 5) {
		int pair[2];

		if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) < 0 || pipe(pair) < 0 || eventfd(0, 0) < 0)
			return fail("objects");
	}
	return 0;
}

static int hold_objects(const char *name, int count)
{
	struct rlimit limit = { 2 * PER_PROCESS, 2 * PER_PROCESS };

	if (setrlimit(RLIMIT_NOFILE, &limit) < 0)
		return fail("setrlimit");
	for (; count > 0; count -= PER_PROCESS)
		if (in_background(name, make_objects, count < PER_PROCESS ? count : PER_PROCESS))
			return 1;
	return 0;
}

int main(int count, char **words)
{
	if (count > 5 && strcmp(words[1], "hold") == 0) {
		seed_with(words[4], words + 5, count - 5);
		return in_background(words[2], fill, atoi(words[3]));
	}
	if (count > 4 && strcmp(words[1], "spend") == 0) {
		seed_with(words[3], words + 4, count - 4);
		return fill(atoi(words[2]));
	}
	if (count == 4 && strcmp(words[1], "files") == 0)
		return make_files(words[2], atoi(words[3]));
	if (count == 4 && strcmp(words[1], "missing") == 0)
		return ask_for_missing(words[2], atoi(words[3]));
	if (count == 4 && strcmp(words[1], "objects") == 0)
		return hold_objects(words[2], atoi(words[3]));
	fprintf(stderr, "usage: heap hold|spend|files|missing|objects ...\n");
	return 64;
}
