// SPDX-License-Identifier: GPL-2.0
/*
 * memwatch: in the capture kernel, follows how much memory is left, from a process of its own.
 *
 * What the kernel itself has taken in large pieces goes to the console first. Then
 * every new low that is half a MiB below the last, with what /proc/meminfo says the
 * rest is used for.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define STEP_KB 512
#define LARGE_KB 256

static const char *const names[] = { "MemTotal", "MemFree", "MemAvailable", "Cached",	 "Dirty",	"AnonPages",
				     "Mapped",	 "Shmem",   "Slab",	    "SUnreclaim", "KernelStack", "PageTables",
				     "Percpu",    "VmallocUsed" };
#define COUNT (sizeof(names) / sizeof(names[0]))

static long find(const char *text, const char *name)
{
	char pattern[32];
	const char *at;

	snprintf(pattern, sizeof(pattern), "\n%s:", name);
	at = strncmp(text, pattern + 1, strlen(pattern + 1)) ? strstr(text, pattern) : text - 1;
	return at ? strtol(at + strlen(pattern), NULL, 10) : 0;
}

static void tell_large(int console, const char *path)
{
	char line[1024], name[64];
	FILE *stream = fopen(path, "r");

	while (stream && fgets(line, sizeof(line), stream)) {
		unsigned long size = 0, count = 0;
		int is_vmalloc = sscanf(line, "0x%*[^ ] %lu %63s", &size, name) == 2;

		if (is_vmalloc ? strstr(line, "vmalloc") == NULL : sscanf(line, "%63s %*u %lu %lu", name, &count, &size) != 3)
			continue;
		size = (is_vmalloc ? size : size * count) >> 10;
		if (size >= LARGE_KB)
			dprintf(console, "memwatch: large %s %s %lu\n", is_vmalloc ? "vmalloc" : "slab", name, size);
	}
	if (stream)
		fclose(stream);
}

int main(void)
{
	static char text[8192];
	long low_free = 1L << 40, low_available = 1L << 40;
	struct timespec pause = { .tv_nsec = 50 * 1000 * 1000 };
	int meminfo = open("/proc/meminfo", O_RDONLY), console = open("/dev/console", O_WRONLY | O_NOCTTY);

	if (meminfo < 0 || console < 0)
		return 1;
	if (fork() != 0)
		return 0;
	setsid();
	tell_large(console, "/proc/vmallocinfo");
	tell_large(console, "/proc/slabinfo");
	for (int fd = 0; fd < 3; fd++)
		if (fd != meminfo && fd != console)
			close(fd);
	for (;; nanosleep(&pause, NULL)) {
		ssize_t got = pread(meminfo, text, sizeof(text) - 1, 0);
		long free_kb, available_kb;
		int used = 0;
		char line[1024];

		if (got <= 0)
			return 1;
		text[got] = 0;
		free_kb = find(text, "MemFree");
		available_kb = find(text, "MemAvailable");
		if (free_kb > low_free - STEP_KB && available_kb > low_available - STEP_KB)
			continue;
		low_free = free_kb < low_free ? free_kb : low_free;
		low_available = available_kb < low_available ? available_kb : low_available;
		used = snprintf(line, sizeof(line), "memwatch:");
		for (size_t number = 0; number < COUNT; number++)
			used += snprintf(line + used, sizeof(line) - used, " %s=%ld", names[number],
					 find(text, names[number]));
		used += snprintf(line + used, sizeof(line) - used, "\n");
		if (write(console, line, used) < 0)
			return 1;
	}
}
