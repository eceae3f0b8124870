// SPDX-License-Identifier: GPL-2.0
/* A lease is given back once too often. */
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/refcount.h>
#include <linux/slab.h>

struct lease {
	char tenant[24];
	refcount_t holders;
	u32 rent;
};

static struct lease *lease_now;

static noinline void lease_put(struct lease *lease)
{
	if (refcount_dec_and_test(&lease->holders))
		pr_info("lease: ended\n");
}

static noinline void lease_cancel(struct lease *lease)
{
	lease_put(lease);
	lease_put(lease);
}

static ssize_t lease_write(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	lease_cancel(lease_now);
	return size;
}

static const struct proc_ops lease_ops = { .proc_write = lease_write };

static int __init lease_init(void)
{
	lease_now = kzalloc(sizeof(*lease_now), GFP_KERNEL);
	refcount_set(&lease_now->holders, 1);
	lease_now->rent = 400;
	proc_create("lease", 0200, NULL, &lease_ops);
	return 0;
}
module_init(lease_init);
MODULE_DESCRIPTION("Leases");
MODULE_LICENSE("GPL");
