// SPDX-License-Identifier: GPL-2.0
/*
 * many: processes with threads, all of them asleep in the kernel, each in one of several ways.
 *
 *   many PROCESSES THREADS    returns once all of them sleep; THREADS counts the first one too
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define STACK_BYTES (32UL << 10)
#define WAYS 8

static atomic_int *asleep;
static int quiet_pipe[2], quiet_socket[2], quiet_event;

static int fail(const char *what)
{
	fprintf(stderr, "lab: failed: many: %s: %s\n", what, strerror(errno));
	return 1;
}

static void sleep_once(int way)
{
	struct pollfd polled = { .fd = quiet_event, .events = POLLIN };
	struct epoll_event event = { .events = EPOLLIN };
	sigset_t none;
	char byte;
	static int word;
	int fd, signal;

	switch (way) {
	case 0:
		syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
		break;
	case 1:
		sleep(1000000);
		break;
	case 2:
		if (read(quiet_pipe[0], &byte, 1) < 0)
			fail("read");
		break;
	case 3:
		poll(&polled, 1, -1);
		break;
	case 4:
		fd = epoll_create1(0);
		epoll_ctl(fd, EPOLL_CTL_ADD, quiet_event, &event);
		epoll_wait(fd, &event, 1, -1);
		break;
	case 5:
		recv(quiet_socket[0], &byte, 1, 0);
		break;
	case 6:
		sigemptyset(&none);
		sigaddset(&none, SIGUSR1);
		sigwait(&none, &signal);
		break;
	default:
		pause();
	}
}

static void *sleep_for_ever(void *argument)
{
	char name[16];
	int number = (int)(long)argument;

	snprintf(name, sizeof(name), "way-%d/%d", number % WAYS, number);
	prctl(PR_SET_NAME, name);
	atomic_fetch_add(asleep, 1);
	for (;;)
		sleep_once(number % WAYS);
	return NULL;
}

static int be_process(int number, int threads)
{
	pthread_attr_t attributes;
	pthread_t thread;

	if (pipe(quiet_pipe) || socketpair(AF_UNIX, SOCK_STREAM, 0, quiet_socket))
		return fail("pipe");
	quiet_event = eventfd(0, 0);
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, STACK_BYTES);
	for (int i = 1; i < threads; i++) {
		errno = pthread_create(&thread, &attributes, sleep_for_ever, (void *)(long)(number + i));
		if (errno)
			return fail("pthread_create");
	}
	sleep_for_ever((void *)(long)number);
	return 0;
}

int main(int count, char **words)
{
	int processes = count == 3 ? atoi(words[1]) : 0, threads = count == 3 ? atoi(words[2]) : 0;

	if (processes < 1 || threads < 1) {
		fprintf(stderr, "usage: many PROCESSES THREADS\n");
		return 1;
	}
	asleep = mmap(NULL, sizeof(*asleep), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (asleep == MAP_FAILED)
		return fail("mmap");
	for (int i = 0; i < processes; i++) {
		pid_t pid = fork();

		if (pid < 0)
			return fail("fork");
		if (pid == 0)
			return be_process(i, threads);
		/* One process at a time: the scheduler has enough to do. */
		while (atomic_load(asleep) < (i + 1) * threads) {
			if (waitpid(pid, NULL, WNOHANG) == pid)
				return fail("a process ended");
			usleep(1000);
		}
	}
	printf("lab: many: %d threads asleep\n", atomic_load(asleep));
	return 0;
}
