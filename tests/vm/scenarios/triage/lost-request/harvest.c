// SPDX-License-Identifier: GPL-2.0
/*
 * harvest: processes that need a file of a disk, once the file WHEN is there.
 *
 *   harvest read NAME FILE WHEN    read its first page
 *   harvest cut NAME FILE WHEN     make it empty
 *   harvest add NAME FILE WHEN     write at its end
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

static char page[4096];

int main(int count, char **words)
{
	int fd;

	if (count != 5)
		return 64;
	prctl(PR_SET_NAME, words[2]);
	fd = open(words[3], O_RDWR | (words[1][0] == 'a' ? O_APPEND : 0));
	if (fd < 0)
		return 1;
	while (access(words[4], F_OK) < 0)
		usleep(100000);
	if (strcmp(words[1], "read") == 0)
		return read(fd, page, sizeof(page)) < 0;
	if (strcmp(words[1], "cut") == 0)
		return ftruncate(fd, 0) < 0;
	return write(fd, page, sizeof(page)) < 0;
}
