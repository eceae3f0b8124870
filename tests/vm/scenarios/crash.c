// SPDX-License-Identifier: GPL-2.0
/*
 * crash: the guest's tools, each its own verb.
 *
 *   crash load KERNEL INITRD COMMAND-LINE   kexec_file_load() for a panic
 *   crash trigger NAME LETTER               be NAME, write LETTER to /proc/sysrq-trigger
 *   crash spin NAME                         be NAME, stay on a CPU in user mode
 *   crash send NAME ADDRESS                 be NAME, send packets until the end
 *   crash write NAME FILE                   be NAME, create FILE
 *   crash eat NAME                          be NAME, use up all memory
 *   crash save FROM TO                      copy /proc/vmcore to a disk, holes stay holes
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define KEXEC_FILE_ON_CRASH 2
#define WINDOW (4UL << 20)
#define BLOCK 65536UL

static int fail(const char *what)
{
	fprintf(stderr, "crash: %s: %s\n", what, strerror(errno));
	return 1;
}

static int load(const char *kernel, const char *initrd, const char *command_line)
{
	int kernel_fd = open(kernel, O_RDONLY), initrd_fd = open(initrd, O_RDONLY);

	if (kernel_fd < 0 || initrd_fd < 0)
		return fail("open");
	if (syscall(SYS_kexec_file_load, kernel_fd, initrd_fd, strlen(command_line) + 1, command_line, KEXEC_FILE_ON_CRASH))
		return fail("kexec_file_load");
	return 0;
}

/* A function of its own, so that the user stack has a caller to show. */
static __attribute__((noinline)) int write_letter(int fd, char letter)
{
	return write(fd, &letter, 1) == 1 ? 0 : fail("write");
}

static int trigger(const char *name, char letter)
{
	int fd = open("/proc/sysrq-trigger", O_WRONLY);

	prctl(PR_SET_NAME, name);
	if (fd < 0)
		return fail("open");
	/* Whoever started this waits for it by then. */
	usleep(300000);
	return write_letter(fd, letter);
}

static _Noreturn void spin(const char *name)
{
	volatile unsigned long count = 0;

	prctl(PR_SET_NAME, name);
	for (;;)
		count++;
}

static int send_packets(const char *name, const char *address)
{
	struct sockaddr_in where = { .sin_family = AF_INET, .sin_port = htons(9) };
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	prctl(PR_SET_NAME, name);
	if (fd < 0 || inet_pton(AF_INET, address, &where.sin_addr) != 1)
		return fail("socket");
	for (;;) {
		sendto(fd, "packet", 6, 0, (struct sockaddr *)&where, sizeof(where));
		usleep(100000);
	}
}

static int write_file(const char *name, const char *path)
{
	int fd;

	prctl(PR_SET_NAME, name);
	fd = open(path, O_WRONLY | O_CREAT, 0600);
	return fd < 0 ? fail("open") : 0;
}

static int eat(const char *name)
{
	prctl(PR_SET_NAME, name);
	for (;;) {
		char *area = mmap(NULL, WINDOW, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (area == MAP_FAILED)
			return fail("mmap");
		memset(area, 0x5a, WINDOW);
	}
}

static const char zeros[BLOCK];

static int put(int to, const char *data, size_t size, off_t at)
{
	for (size_t done = 0; done < size; done += BLOCK) {
		size_t part = size - done < BLOCK ? size - done : BLOCK;

		if (memcmp(data + done, zeros, part) != 0 && pwrite(to, data + done, part, at + done) != (ssize_t)part)
			return fail("pwrite");
	}
	return 0;
}

/* Mapping /proc/vmcore is many times faster than reading it; where it fails, read. */
static int save(const char *source, const char *target)
{
	int from = open(source, O_RDONLY), to = open(target, O_WRONLY);
	char *buffer = malloc(WINDOW);
	struct stat status;

	if (from < 0 || to < 0 || buffer == NULL || fstat(from, &status) < 0)
		return fail("open");
	for (off_t at = 0; at < status.st_size; at += WINDOW) {
		size_t size = status.st_size - at < (off_t)WINDOW ? (size_t)(status.st_size - at) : WINDOW;
		char *window = mmap(NULL, size, PROT_READ, MAP_PRIVATE, from, at);

		if (window != MAP_FAILED) {
			if (put(to, window, size, at))
				return 1;
			munmap(window, size);
			continue;
		}
		for (size_t done = 0; done < size;) {
			ssize_t got = pread(from, buffer + done, size - done, at + done);

			if (got <= 0)
				return fail("read");
			done += got;
		}
		if (put(to, buffer, size, at))
			return 1;
	}
	if (fsync(to) < 0)
		return fail("fsync");
	printf("crash: saved %lld bytes\n", (long long)status.st_size);
	return 0;
}

int main(int count, char **words)
{
	if (count == 5 && strcmp(words[1], "load") == 0)
		return load(words[2], words[3], words[4]);
	if (count == 4 && strcmp(words[1], "trigger") == 0)
		return trigger(words[2], words[3][0]);
	if (count == 3 && strcmp(words[1], "spin") == 0)
		spin(words[2]);
	if (count == 4 && strcmp(words[1], "send") == 0)
		return send_packets(words[2], words[3]);
	if (count == 4 && strcmp(words[1], "write") == 0)
		return write_file(words[2], words[3]);
	if (count == 3 && strcmp(words[1], "eat") == 0)
		return eat(words[2]);
	if (count == 4 && strcmp(words[1], "save") == 0)
		return save(words[2], words[3]);
	fprintf(stderr, "usage: crash load|trigger|spin|send|write|eat|save ...\n");
	return 64;
}
