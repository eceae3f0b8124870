// SPDX-License-Identifier: GPL-2.0
/* A line is closed and freed, but stays in the table that drain goes through. */
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/slab.h>

struct relay_peer {
	u64 received;
	char host[24];
};

struct relay_line {
	char label[16];
	u32 number;
	u32 flags;
	struct relay_peer *peer;
	u8 window[128];
};

#define LINES 64
static struct relay_line *relay_table[LINES];

static noinline u64 relay_drain_line(struct relay_line *line, u64 bytes)
{
	line->peer->received += bytes;
	return line->peer->received;
}

static noinline u64 relay_drain(void)
{
	u64 sum = 0;
	int i;

	for (i = 0; i < LINES; i++)
		if (relay_table[i])
			sum += relay_drain_line(relay_table[i], 512);
	return sum;
}

static noinline void relay_close(int from)
{
	int i;

	for (i = from; i < LINES; i++) {
		kfree(relay_table[i]->peer);
		kfree(relay_table[i]);
	}
}

static ssize_t relay_write(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	char verb = 0;

	if (get_user(verb, text))
		return -EFAULT;
	if (verb == 'c')
		relay_close(16);
	else
		relay_drain();
	return size;
}

static const struct proc_ops relay_ops = { .proc_write = relay_write };

static int __init relay_init(void)
{
	int i;

	for (i = 0; i < LINES; i++) {
		struct relay_line *line = kzalloc(sizeof(*line), GFP_KERNEL);

		snprintf(line->label, sizeof(line->label), "line%d", i);
		line->number = i;
		line->peer = kzalloc(sizeof(*line->peer), GFP_KERNEL);
		relay_table[i] = line;
	}
	proc_create("relay", 0200, NULL, &relay_ops);
	return 0;
}
module_init(relay_init);
MODULE_DESCRIPTION("Lines and their peers");
MODULE_LICENSE("GPL");
