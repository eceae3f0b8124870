// SPDX-License-Identifier: GPL-2.0
/*
 * memwatch: in the capture kernel, follows how much memory is left, from a process of its own.
 *
 * Every new low that is half a MiB below the last goes to the console, with what
 * /proc/meminfo says the rest is used for.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define STEP_KB 512

static const char *const names[] = { "MemTotal", "MemFree", "MemAvailable", "Cached",	 "Dirty",	"AnonPages",
				     "Mapped",	 "Shmem",   "Slab",	    "SUnreclaim", "KernelStack", "PageTables",
				     "Percpu" };
#define COUNT (sizeof(names) / sizeof(names[0]))

static long find(const char *text, const char *name)
{
	char pattern[32];
	const char *at;

	snprintf(pattern, sizeof(pattern), "\n%s:", name);
	at = strncmp(text, pattern + 1, strlen(pattern + 1)) ? strstr(text, pattern) : text - 1;
	return at ? strtol(at + strlen(pattern), NULL, 10) : 0;
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
