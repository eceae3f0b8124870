// SPDX-License-Identifier: GPL-2.0
/* Blocks of pages straight from the allocator, which no statistic names. */
#include <linux/gfp.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/proc_fs.h>

static u64 quarry_blocks;

static noinline int quarry_cut(void)
{
	struct page *block = alloc_pages(GFP_KERNEL | __GFP_NOWARN, 3);

	if (!block)
		return -ENOMEM;
	quarry_blocks++;
	return 0;
}

static ssize_t quarry_write(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	int i;

	for (i = 0; i < 256; i++)
		if (quarry_cut())
			return -ENOMEM;
	return size;
}

static const struct proc_ops quarry_ops = { .proc_write = quarry_write };

static int __init quarry_init(void)
{
	proc_create("quarry", 0200, NULL, &quarry_ops);
	return 0;
}
module_init(quarry_init);
MODULE_DESCRIPTION("Blocks of stone");
MODULE_LICENSE("GPL");
