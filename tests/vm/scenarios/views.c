// SPDX-License-Identifier: GPL-2.0
/*
 * views: what processes can hold open, one of each, and what the kernel says of it.
 *
 *   views hold         be "view-holder", open everything, print "lab: held PID", stay
 *   views pages PID    print where each page of a process is: "VADDR pfn N", "VADDR swap TYPE OFFSET", "VADDR none"
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdint.h>
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
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif
#define PAGE 4096UL
#define MIB (1UL << 20)

static int check(int result, const char *what)
{
	if (result < 0)
		printf("lab: views: %s: %s\n", what, strerror(errno));
	return result;
}

static void *map(size_t size, int protection, int flags, int fd, off_t at)
{
	void *area = mmap(NULL, size, protection, flags, fd, at);

	if (area == MAP_FAILED) {
		check(-1, "mmap");
		return NULL;
	}
	return area;
}

static void touch(volatile char *area, size_t size, size_t step)
{
	for (size_t at = 0; area && at < size; at += step)
		area[at] = (char)(at / PAGE + 1);
}

static void read_pages(volatile char *area, size_t size, size_t step)
{
	char sum = 0;

	for (size_t at = 0; area && at < size; at += step)
		sum += area[at];
	(void)sum;
}

static void hold_memory(void)
{
	int file = check(open("/tmp/mapped", O_RDWR | O_CREAT, 0644), "/tmp/mapped");
	int data = check(open("/in/data", O_RDONLY), "/in/data");
	char *area;

	check(ftruncate(file, 64 * PAGE), "ftruncate");
	touch(map(64 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0), 64 * PAGE, 2 * PAGE);
	/* Some pages of the file, some of our own, some of neither. */
	area = map(32 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, data, 5 * PAGE);
	read_pages(area, 16 * PAGE, PAGE);
	touch(area + 8 * PAGE, 8 * PAGE, PAGE);
	touch(map(16 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0), 16 * PAGE, PAGE);
	area = map(MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	touch(area, MIB, PAGE);
	if (area)
		check(madvise(area, MIB, MADV_PAGEOUT), "pageout");
	/* No page at all. */
	map(8 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	map(8 * PAGE, PROT_READ, MAP_PRIVATE, data, 0);
	area = map(4 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (area) {
		madvise(area, 4 * MIB, MADV_HUGEPAGE);
		touch(area, 4 * MIB, PAGE);
	}
	area = map(4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	touch(area, 4 * PAGE, PAGE);
	check(mlock(area, 4 * PAGE), "mlock");
}

static void hold_files(void)
{
	int ends[2], deleted, directory, poller;

	check(mkdir("/tmp/held", 0755), "mkdir");
	directory = check(open("/tmp/held", O_RDONLY | O_DIRECTORY), "directory");
	check(openat(directory, "regular", O_RDWR | O_CREAT, 0640), "regular");
	check(mkfifo("/tmp/held/fifo", 0600), "mkfifo");
	check(open("/tmp/held/fifo", O_RDWR), "fifo");
	check(symlink("regular", "/tmp/held/link"), "symlink");
	check(open("/tmp/held/link", O_PATH | O_NOFOLLOW), "link");
	check(open("/dev/null", O_RDWR), "null");
	check(open("/dev/vdc", O_RDONLY), "vdc");
	check(open("/mnt/bind/held/regular", O_RDONLY), "bind");
	check(open("/mnt/loop/file-3", O_RDONLY), "loop");
	check(open("/mnt/overlay/file-4", O_RDONLY), "overlay");
	check(open("/proc/self/status", O_RDONLY), "proc");
	check(open("/sys/kernel/profiling", O_RDONLY), "sysfs");
	check(pipe(ends), "pipe");
	deleted = check(open("/tmp/held/gone away", O_RDWR | O_CREAT, 0600), "deleted");
	check(ftruncate(deleted, 3 * PAGE), "deleted");
	check(unlink("/tmp/held/gone away"), "unlink");
	check(memfd_create("held-memory", 0), "memfd");
	check(inotify_init(), "inotify");
	poller = check(epoll_create1(0), "epoll");
	epoll_ctl(poller, EPOLL_CTL_ADD, eventfd(7, 0), &(struct epoll_event){ .events = EPOLLIN });
	/* Beyond what fits into one word of the table of open files. */
	check(dup2(deleted, 200), "dup2");
}

static void hold_inet(int family, int type, int protocol, int port, int peer)
{
	struct sockaddr_in6 six = { .sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = in6addr_loopback };
	struct sockaddr_in four = { .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct sockaddr *where = family == AF_INET6 ? (struct sockaddr *)&six : (struct sockaddr *)&four;
	socklen_t size = family == AF_INET6 ? sizeof(six) : sizeof(four);
	int fd = check(socket(family, type, protocol), "socket"), one = 1;

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (port)
		check(bind(fd, where, size), "bind");
	if (type == SOCK_STREAM && port)
		check(listen(fd, 5), "listen");
	if (peer) {
		six.sin6_port = four.sin_port = htons(peer);
		check(connect(fd, where, size), "connect");
	}
}

static void hold_sockets(void)
{
	struct sockaddr_un path = { .sun_family = AF_UNIX, .sun_path = "/tmp/held/socket" };
	struct sockaddr_un hidden = { .sun_family = AF_UNIX, .sun_path = "\0held-abstract" };
	struct sockaddr_nl group = { .nl_family = AF_NETLINK, .nl_groups = RTMGRP_LINK | RTMGRP_IPV4_ROUTE };
	struct sockaddr_ll link = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ARP) };
	int fd, pair[2];

	hold_inet(AF_INET, SOCK_STREAM, 0, 7101, 0);
	hold_inet(AF_INET, SOCK_STREAM, 0, 0, 7101);
	hold_inet(AF_INET6, SOCK_STREAM, 0, 7102, 0);
	hold_inet(AF_INET6, SOCK_STREAM, 0, 0, 7102);
	hold_inet(AF_INET, SOCK_DGRAM, 0, 7103, 7104);
	hold_inet(AF_INET6, SOCK_DGRAM, 0, 7105, 0);
	hold_inet(AF_INET, SOCK_RAW, IPPROTO_ICMP, 0, 0);
	/* Not bound, not connected. */
	hold_inet(AF_INET, SOCK_STREAM, 0, 0, 0);
	fd = check(socket(AF_UNIX, SOCK_STREAM, 0), "unix");
	check(bind(fd, (struct sockaddr *)&path, sizeof(path)), "unix path");
	check(listen(fd, 5), "unix listen");
	fd = check(socket(AF_UNIX, SOCK_STREAM, 0), "unix");
	check(connect(fd, (struct sockaddr *)&path, sizeof(path)), "unix connect");
	fd = check(socket(AF_UNIX, SOCK_DGRAM, 0), "unix");
	check(bind(fd, (struct sockaddr *)&hidden, sizeof(sa_family_t) + 14), "unix abstract");
	check(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), "socketpair");
	fd = check(socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE), "netlink");
	check(bind(fd, (struct sockaddr *)&group, sizeof(group)), "netlink");
	link.sll_ifindex = if_nametoindex("lo");
	fd = check(socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ARP)), "packet");
	check(bind(fd, (struct sockaddr *)&link, sizeof(link)), "packet");
}

static void hold_ipc(void)
{
	struct { long type; char text[100]; } message = { 7, "left in the queue" };
	int id = check(shmget(0x7101, 5 * PAGE + 1, IPC_CREAT | 0640), "shmget");
	char *area = shmat(id, NULL, 0);

	if (area != (void *)-1)
		touch(area, 3 * PAGE, PAGE);
	id = check(shmget(IPC_PRIVATE, MIB, IPC_CREAT | 0600), "shmget");
	area = shmat(id, NULL, 0);
	if (area != (void *)-1)
		touch(area, MIB, PAGE);
	check(madvise(area, MIB, MADV_PAGEOUT), "pageout");
	check(shmctl(id, IPC_RMID, NULL), "shmctl");
	check(semget(0x7102, 4, IPC_CREAT | 0660), "semget");
	id = check(msgget(0x7103, IPC_CREAT | 0620), "msgget");
	for (int i = 0; i < 3; i++)
		check(msgsnd(id, &message, sizeof(message.text), 0), "msgsnd");
}

static long bpf(enum bpf_cmd command, union bpf_attr *attributes)
{
	return syscall(SYS_bpf, command, attributes, sizeof(*attributes));
}

static int make_map(enum bpf_map_type type, unsigned key, unsigned value, unsigned entries, unsigned flags, const char *name)
{
	union bpf_attr attributes = { .map_type = type, .key_size = key, .value_size = value, .max_entries = entries, .map_flags = flags };

	strncpy(attributes.map_name, name, sizeof(attributes.map_name) - 1);
	return check(bpf(BPF_MAP_CREATE, &attributes), name);
}

#define INSN(op, to, from, by, value) \
	{ .code = (op), .dst_reg = (to), .src_reg = (from), .off = (by), .imm = (value) }

static void hold_bpf(void)
{
	int counts = make_map(BPF_MAP_TYPE_ARRAY, 4, 8, 16, 0, "held_counts");
	int table = make_map(BPF_MAP_TYPE_HASH, 4, 12, 100, BPF_F_NO_PREALLOC, "held_table");
	struct bpf_insn program[] = {
		INSN(BPF_ALU64 | BPF_MOV | BPF_X, 6, 1, 0, 0),
		INSN(BPF_LD | BPF_ABS | BPF_B, 0, 0, 0, 14 + 9),
		INSN(BPF_STX | BPF_W | BPF_MEM, 10, 0, -4, 0),
		INSN(BPF_ALU64 | BPF_MOV | BPF_X, 2, 10, 0, 0),
		INSN(BPF_ALU64 | BPF_ADD | BPF_K, 2, 0, 0, -4),
		INSN(BPF_LD | BPF_DW | BPF_IMM, 1, BPF_PSEUDO_MAP_FD, 0, counts),
		INSN(0, 0, 0, 0, 0),
		INSN(BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_map_lookup_elem),
		INSN(BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 2, 0),
		INSN(BPF_ALU64 | BPF_MOV | BPF_K, 1, 0, 0, 1),
		INSN(BPF_STX | BPF_DW | BPF_ATOMIC, 0, 1, 0, BPF_ADD),
		INSN(BPF_ALU64 | BPF_MOV | BPF_K, 0, 0, 0, 0),
		INSN(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
	};
	union bpf_attr attributes = { .prog_type = BPF_PROG_TYPE_SOCKET_FILTER, .license = (uintptr_t)"GPL" };
	uint32_t key = 5;
	char value[12] = "eleven byte";
	union bpf_attr element = { .map_fd = table, .key = (uintptr_t)&key, .value = (uintptr_t)value };
	int fd, pair[2];

	bpf(BPF_MAP_UPDATE_ELEM, &element);
	attributes.insns = (uintptr_t)program;
	attributes.insn_cnt = sizeof(program) / sizeof(program[0]);
	strcpy(attributes.prog_name, "held_filter");
	fd = check(bpf(BPF_PROG_LOAD, &attributes), "program");
	if (fd >= 0 && socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) == 0)
		check(setsockopt(pair[0], SOL_SOCKET, SO_ATTACH_BPF, &fd, sizeof(fd)), "attach");
}

static _Noreturn void hold(void)
{
	prctl(PR_SET_NAME, "view-holder");
	setvbuf(stdout, NULL, _IONBF, 0);
	check(chdir("/tmp"), "chdir");
	hold_files();
	hold_sockets();
	hold_ipc();
	hold_bpf();
	hold_memory();
	printf("lab: held %d\n", getpid());
	for (;;)
		pause();
}

static void print_pages(int map, unsigned long start, unsigned long end)
{
	for (unsigned long at = start; at < end; at += PAGE) {
		uint64_t entry;

		if (pread(map, &entry, sizeof(entry), at / PAGE * sizeof(entry)) != sizeof(entry))
			return;
		if (entry >> 63)
			printf("%lx pfn %lu\n", at, (unsigned long)(entry & ((1UL << 55) - 1)));
		else if (entry >> 62 & 1)
			printf("%lx swap %lu %lu\n", at, (unsigned long)(entry & 31), (unsigned long)(entry >> 5 & ((1UL << 50) - 1)));
		else
			printf("%lx none\n", at);
	}
}

static int pages(const char *pid)
{
	char name[64], line[1024];
	unsigned long start, end;
	FILE *maps;
	int map;

	snprintf(name, sizeof(name), "/proc/%s/maps", pid);
	maps = fopen(name, "r");
	snprintf(name, sizeof(name), "/proc/%s/pagemap", pid);
	map = open(name, O_RDONLY);
	if (maps == NULL || map < 0)
		return 1;
	while (fgets(line, sizeof(line), maps))
		if (sscanf(line, "%lx-%lx", &start, &end) == 2 && start < 1UL << 47)
			print_pages(map, start, end);
	return 0;
}

int main(int count, char **words)
{
	if (count == 2 && strcmp(words[1], "hold") == 0)
		hold();
	if (count == 3 && strcmp(words[1], "pages") == 0)
		return pages(words[2]);
	fprintf(stderr, "usage: views hold | views pages PID\n");
	return 64;
}
