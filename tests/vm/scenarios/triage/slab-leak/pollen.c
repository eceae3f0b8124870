// SPDX-License-Identifier: GPL-2.0
/* Grains that are collected and never given back. */
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/slab.h>

struct pollen_grain {
	struct list_head link;
	char plant[32];
	u64 season;
	u8 shell[168];
};

static struct kmem_cache *pollen_cache;
static u64 pollen_count;

static noinline int pollen_collect(void)
{
	struct pollen_grain *grain = kmem_cache_alloc(pollen_cache, GFP_KERNEL);

	if (!grain)
		return -ENOMEM;
	snprintf(grain->plant, sizeof(grain->plant), "birch %llu", pollen_count++);
	grain->season = 2026;
	return 0;
}

static ssize_t pollen_write(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	int i;

	for (i = 0; i < 20000; i++)
		if (pollen_collect())
			return -ENOMEM;
	return size;
}

static const struct proc_ops pollen_ops = { .proc_write = pollen_write };

static int __init pollen_init(void)
{
	pollen_cache = kmem_cache_create("pollen_grain", sizeof(struct pollen_grain), 0, 0, NULL);
	proc_create("pollen", 0200, NULL, &pollen_ops);
	return pollen_cache ? 0 : -ENOMEM;
}
module_init(pollen_init);
MODULE_DESCRIPTION("Grains of pollen");
MODULE_LICENSE("GPL");
