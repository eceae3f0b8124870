// SPDX-License-Identifier: GPL-2.0
/*
 * load: make a freshly booted guest look like a machine at work.
 *
 * Every process gets a name, holds some memory and waits in its own way, so
 * that a dump of the guest has tasks, sockets, files and memory of all kinds.
 * Creates /tmp/ready once everything stands, then stays as their parent.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB (1UL << 20)
#define PAGE 4096UL

static int ready_pipe[2];

static void say_ready(void)
{
	char byte = 1;

	if (write(ready_pipe[1], &byte, 1) != 1)
		_exit(3);
	close(ready_pipe[1]);
	close(ready_pipe[0]);
}

/* Text, numbers and runs of zeros: compresses about as ordinary data does. */
static void fill(char *area, size_t size, unsigned seed)
{
	for (size_t at = 0; at < size; at += PAGE) {
		if (at % (8 * PAGE) == 7 * PAGE)
			continue;
		for (size_t i = 0; i < PAGE; i += 64) {
			seed = seed * 1103515245u + 12345u;
			snprintf(area + at + i, 64, "pid %d page %zu record %u: %08x", getpid(), at / PAGE, seed >> 8, seed);
		}
	}
}

static char *anonymous(size_t size, int flags, unsigned seed)
{
	char *area = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);

	if (area == MAP_FAILED)
		return NULL;
	fill(area, size, seed);
	return area;
}

static void wait_nanosleep(void)  { for (;;) sleep(1000); }
static void wait_pause(void)      { for (;;) pause(); }
static void wait_poll(void)       { for (;;) poll(NULL, 0, 1000000); }

static void wait_pipe(void)
{
	int ends[2];
	char byte;

	if (pipe(ends) == 0 && write(ends[1], "left in the pipe", 16) == 16)
		for (;;)
			if (read(ends[0], &byte, 1) < 0)
				pause();
	pause();
}

static void wait_futex(void)
{
	int word = 1;

	for (;;)
		syscall(SYS_futex, &word, FUTEX_WAIT, 1, NULL, NULL, 0);
}

static void wait_epoll(void)
{
	struct epoll_event event = { .events = EPOLLIN };
	int poller = epoll_create1(0), counter = eventfd(0, 0), timer = timerfd_create(CLOCK_MONOTONIC, 0);
	struct itimerspec when = { .it_interval.tv_sec = 3600, .it_value.tv_sec = 3600 };

	timerfd_settime(timer, 0, &when, NULL);
	epoll_ctl(poller, EPOLL_CTL_ADD, counter, &event);
	epoll_ctl(poller, EPOLL_CTL_ADD, timer, &event);
	for (;;)
		epoll_wait(poller, &event, 1, -1);
}

static void wait_inotify(void)
{
	char buffer[4096];
	int watch = inotify_init();

	inotify_add_watch(watch, "/", IN_CREATE | IN_DELETE);
	for (;;)
		if (read(watch, buffer, sizeof(buffer)) < 0)
			pause();
}

static void wait_signalfd(void)
{
	struct signalfd_siginfo info;
	sigset_t set;
	int fd;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGUSR2);
	sigprocmask(SIG_BLOCK, &set, NULL);
	fd = signalfd(-1, &set, 0);
	for (;;)
		if (read(fd, &info, sizeof(info)) < 0)
			pause();
}

static void wait_semaphore(void)
{
	struct sembuf down = { .sem_num = 0, .sem_op = -1 };
	int set = semget(0x5e3a, 3, IPC_CREAT | 0600);

	for (;;)
		if (semop(set, &down, 1) < 0)
			pause();
}

static void wait_message(void)
{
	struct { long type; char text[64]; } message;
	int queue = msgget(0x3e55, IPC_CREAT | 0600);

	for (;;)
		if (msgrcv(queue, &message, sizeof(message.text), 99, 0) < 0)
			pause();
}

static void wait_posix_timer(void)
{
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGALRM };
	struct itimerspec when = { .it_interval.tv_sec = 1800, .it_value.tv_sec = 1800 };
	timer_t timer;

	signal(SIGALRM, SIG_IGN);
	timer_create(CLOCK_REALTIME, &event, &timer);
	timer_settime(timer, 0, &when, NULL);
	for (;;)
		pause();
}

static void wait_deleted_file(void)
{
	char name[64];
	int fd;

	snprintf(name, sizeof(name), "/tmp/deleted-%d", getpid());
	fd = open(name, O_RDWR | O_CREAT, 0600);
	if (fd >= 0 && write(fd, name, sizeof(name)) > 0)
		unlink(name);
	for (;;)
		pause();
}

static void wait_hugetlb(void)
{
	anonymous(2 * MIB, MAP_HUGETLB, 7);
	for (;;)
		pause();
}

static void wait_transparent_huge(void)
{
	char *area = mmap(NULL, 8 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (area != MAP_FAILED) {
		madvise(area, 8 * MIB, MADV_HUGEPAGE);
		fill(area, 8 * MIB, 11);
	}
	for (;;)
		pause();
}

static void wait_locked(void)
{
	char *area = anonymous(2 * MIB, 0, 13);

	if (area)
		mlock(area, 2 * MIB);
	for (;;)
		pause();
}

static void wait_swapped(void)
{
	char *area = anonymous(4 * MIB, 0, 23);

#ifdef MADV_PAGEOUT
	if (area)
		madvise(area, 4 * MIB, MADV_PAGEOUT);
#endif
	for (;;)
		pause();
}

static void wait_shared_memory(void)
{
	int id = shmget(0x5a3e, 4 * MIB, IPC_CREAT | 0600);
	char *area = shmat(id, NULL, 0);

	if (area != (void *)-1)
		fill(area, 4 * MIB, 17);
	for (;;)
		pause();
}

static void wait_memfd(void)
{
	int fd = memfd_create("scratch", 0);
	char *area;

	if (fd >= 0 && ftruncate(fd, 2 * MIB) == 0) {
		area = mmap(NULL, 2 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (area != MAP_FAILED)
			fill(area, 2 * MIB, 19);
	}
	for (;;)
		pause();
}

/* The threads of one process; the lock is held, so that one thread waits for it. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void *thread(void *argument)
{
	char name[16];

	snprintf(name, sizeof(name), "thread/%ld", (long)argument);
	prctl(PR_SET_NAME, name);
	if ((long)argument == 1)
		pthread_mutex_lock(&lock);
	wait_nanosleep();
	return NULL;
}

static void wait_threads(void)
{
	pthread_attr_t attributes;
	pthread_t id;

	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, 64 * 1024);
	pthread_mutex_lock(&lock);
	for (long i = 1; i <= 8; i++)
		pthread_create(&id, &attributes, thread, (void *)i);
	wait_pause();
}

static void *own_stack_child(void *argument) { (void)argument; wait_nanosleep(); return NULL; }

static void wait_zombie(void)
{
	pthread_t id;

	if (fork() == 0)
		_exit(0);
	pthread_create(&id, NULL, own_stack_child, NULL);
	wait_nanosleep();
}

/* Connections to ourselves, some with bytes that nobody has read yet. */
static void tcp_connections(int family, int port, int count)
{
	struct sockaddr_in6 six = { .sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = in6addr_loopback };
	struct sockaddr_in four = { .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct sockaddr *where = family == AF_INET6 ? (struct sockaddr *)&six : (struct sockaddr *)&four;
	socklen_t size = family == AF_INET6 ? sizeof(six) : sizeof(four);
	int one = 1, listener = socket(family, SOCK_STREAM, 0);

	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(listener, where, size) < 0 || listen(listener, 16) < 0) {
		perror("load: listen");
		return;
	}
	for (int i = 0; i < count; i++) {
		int client = socket(family, SOCK_STREAM, 0), server;

		if (connect(client, where, size) < 0)
			break;
		server = accept(listener, NULL, NULL);
		setsockopt(client, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
		if (i % 2 && write(client, "GET / HTTP/1.0\r\n\r\n", 18) != 18)
			break;
		if (i % 5 == 4)
			close(server);
	}
}

static void wait_tcp(void)
{
	tcp_connections(AF_INET, 8080, 12);
	tcp_connections(AF_INET6, 8081, 4);
	wait_poll();
}

static void wait_udp(void)
{
	struct sockaddr_in where = { .sin_family = AF_INET, .sin_port = htons(5353), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int server = socket(AF_INET, SOCK_DGRAM, 0), client = socket(AF_INET, SOCK_DGRAM, 0);

	if (bind(server, (struct sockaddr *)&where, sizeof(where)) < 0 ||
	    connect(client, (struct sockaddr *)&where, sizeof(where)) < 0 || send(client, "datagram", 8, 0) < 0)
		perror("load: udp");
	wait_poll();
}

static void wait_unix(void)
{
	struct sockaddr_un where = { .sun_family = AF_UNIX, .sun_path = "/tmp/service.sock" };
	int pair[2], client, listener = socket(AF_UNIX, SOCK_STREAM, 0);

	unlink(where.sun_path);
	if (bind(listener, (struct sockaddr *)&where, sizeof(where)) < 0 || listen(listener, 8) < 0)
		perror("load: unix");
	for (int i = 0; i < 4; i++) {
		client = socket(AF_UNIX, SOCK_STREAM, 0);
		if (connect(client, (struct sockaddr *)&where, sizeof(where)) == 0 && accept(listener, NULL, NULL) >= 0)
			if (write(client, "hello", 5) != 5)
				break;
	}
	if (socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) == 0 && write(pair[0], "one", 3) != 3)
		perror("load: socketpair");
	wait_poll();
}

/* Stays on a CPU now and then, so that run queues and timers are never all empty. */
static void wait_ticking(void)
{
	volatile unsigned count = 0;

	for (;;) {
		for (int i = 0; i < 20000; i++)
			count++;
		usleep(20000);
	}
}

static const struct kind {
	const char *name;
	void (*wait)(void);
	int count;
	unsigned anonymous_kib;
} kinds[] = {
	{ "web-worker", wait_epoll, 24, 768 },   { "db-writer", wait_futex, 16, 2048 },
	{ "queue-reader", wait_message, 6, 64 }, { "sem-waiter", wait_semaphore, 6, 64 },
	{ "pipe-reader", wait_pipe, 12, 64 },    { "sleeper", wait_nanosleep, 24, 64 },
	{ "pauser", wait_pause, 24, 64 },        { "poller", wait_poll, 16, 64 },
	{ "watcher", wait_inotify, 4, 64 },      { "signal-reader", wait_signalfd, 4, 64 },
	{ "timer-owner", wait_posix_timer, 4, 64 }, { "file-holder", wait_deleted_file, 6, 64 },
	{ "huge-user", wait_hugetlb, 2, 0 },     { "thp-user", wait_transparent_huge, 2, 0 },
	{ "locker", wait_locked, 2, 0 },         { "shm-user", wait_shared_memory, 3, 0 },
	{ "swapped-out", wait_swapped, 2, 0 },
	{ "memfd-user", wait_memfd, 2, 0 },      { "threaded", wait_threads, 4, 128 },
	{ "negligent", wait_zombie, 2, 0 },      { "tcp-server", wait_tcp, 1, 64 },
	{ "udp-server", wait_udp, 1, 64 },       { "unix-server", wait_unix, 1, 64 },
	{ "cache-hog", wait_nanosleep, 1, 65536 }, { "ticker", wait_ticking, 2, 64 },
};

static void become(const struct kind *kind, int number)
{
	char name[16];

	snprintf(name, sizeof(name), "%s/%d", kind->name, number);
	prctl(PR_SET_NAME, name);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (kind->anonymous_kib)
		anonymous(kind->anonymous_kib * 1024UL, 0, number + 1);
	say_ready();
	kind->wait();
	_exit(0);
}

int main(void)
{
	struct { long type; char text[64]; } message = { 1, "nobody asks for this type" };
	int expected = 0;
	char byte;

	setvbuf(stdout, NULL, _IONBF, 0);
	prctl(PR_SET_NAME, "load");
	if (pipe(ready_pipe) < 0)
		return 1;
	semget(0x5e3a, 3, IPC_CREAT | 0600);
	msgsnd(msgget(0x3e55, IPC_CREAT | 0600), &message, sizeof(message.text), 0);
	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
		for (int number = 0; number < kinds[i].count; number++) {
			pid_t pid = fork();

			if (pid == 0)
				become(&kinds[i], number);
			if (pid < 0)
				perror("load: fork");
			else
				expected++;
		}
	close(ready_pipe[1]);
	for (int i = 0; i < expected; i++)
		if (read(ready_pipe[0], &byte, 1) != 1)
			break;
	printf("load: ready, %d processes\n", expected);
	close(open("/tmp/ready", O_CREAT | O_WRONLY, 0600));
	for (;;)
		pause();
}
