// SPDX-License-Identifier: GPL-2.0
/* A function that returns an error as a pointer, and a caller that asks only whether it is NULL. */
#include <linux/err.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/slab.h>

struct permit {
	char holder[20];
	u32 zone;
	u64 expires;
};

static noinline struct permit *permit_issue(u32 zone)
{
	struct permit *permit;

	if (zone > 3)
		return ERR_PTR(-EACCES);
	permit = kzalloc(sizeof(*permit), GFP_KERNEL);
	if (permit)
		permit->zone = zone;
	return permit;
}

static noinline void permit_extend(struct permit *permit, u64 by)
{
	permit->expires += by;
}

static ssize_t permit_write(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	struct permit *permit = permit_issue(size * 4);

	if (!permit)
		return -ENOMEM;
	permit_extend(permit, 3600);
	return size;
}

static const struct proc_ops permit_ops = { .proc_write = permit_write };

static int __init permit_init(void)
{
	proc_create("permit", 0200, NULL, &permit_ops);
	return 0;
}
module_init(permit_init);
MODULE_DESCRIPTION("Permits");
MODULE_LICENSE("GPL");
