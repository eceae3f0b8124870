// SPDX-License-Identifier: GPL-2.0
/*
 * act: processes with names of their own.
 *
 *   act write NAME FILE TEXT    write TEXT to FILE
 *   act read NAME FILE          read FILE once
 *   act direct NAME FILE        write a block to FILE past the page cache, for ever
 *   act spin NAME               stay on a CPU in user mode
 *   act sleep NAME              sleep for ever
 *   act eat NAME MIB            have so much memory, then sleep
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

static char block[4096] __attribute__((aligned(4096)));

static int fail(const char *what)
{
	fprintf(stderr, "act: %s: %s\n", what, strerror(errno));
	return 1;
}

int main(int count, char **words)
{
	const char *verb = count > 2 ? words[1] : "";
	const char *path = count > 3 ? words[3] : "";
	volatile unsigned long turns = 0;
	int fd;

	if (count > 2)
		prctl(PR_SET_NAME, words[2]);
	if (strcmp(verb, "write") == 0 && count == 5) {
		fd = open(path, O_WRONLY);
		if (fd < 0 || write(fd, words[4], strlen(words[4])) < 0)
			return fail(path);
		return 0;
	}
	if (strcmp(verb, "read") == 0 && count == 4) {
		fd = open(path, O_RDONLY);
		if (fd < 0 || read(fd, block, sizeof(block)) < 0)
			return fail(path);
		return 0;
	}
	if (strcmp(verb, "direct") == 0 && count == 4) {
		fd = open(path, O_RDWR | O_DIRECT | O_CREAT, 0600);
		if (fd < 0)
			return fail(path);
		for (off_t at = 0;; at = (at + 4096) % (1 << 20))
			if (pwrite(fd, block, sizeof(block), at) < 0)
				return fail(path);
	}
	if (strcmp(verb, "eat") == 0 && count == 4) {
		size_t size = strtoul(path, NULL, 10) << 20;
		char *area = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (area == MAP_FAILED)
			return fail("mmap");
		memset(area, 0x5a, size);
		for (;;)
			pause();
	}
	if (strcmp(verb, "sleep") == 0)
		for (;;)
			pause();
	if (strcmp(verb, "spin") == 0)
		for (;;)
			turns++;
	fprintf(stderr, "usage: act write|read|direct|spin|sleep|eat NAME ...\n");
	return 64;
}
