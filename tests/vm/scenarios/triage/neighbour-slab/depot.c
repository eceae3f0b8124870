// SPDX-License-Identifier: GPL-2.0
/* Crates with a pointer to their load; counted now and then. Does nothing wrong. */
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/slab.h>

struct depot_load {
	u64 weight;
	u64 volume;
};

struct depot_crate {
	struct depot_load *load;
	u32 number;
	u32 row;
	u8 seal[80];
};

#define CRATES 170
static struct depot_crate *depot_crates[CRATES];

void *depot_make(u32 number);
void *depot_make(u32 number)
{
	struct depot_crate *crate = kzalloc(sizeof(*crate), GFP_KERNEL);

	crate->number = number;
	crate->load = kzalloc(sizeof(*crate->load), GFP_KERNEL);
	crate->load->weight = number * 3;
	depot_crates[number] = crate;
	return crate;
}
EXPORT_SYMBOL_GPL(depot_make);

static noinline u64 depot_weigh(struct depot_crate *crate)
{
	return crate->load->weight;
}

static noinline u64 depot_count(void)
{
	u64 sum = 0;
	int i;

	for (i = 0; i < CRATES; i++)
		if (depot_crates[i])
			sum += depot_weigh(depot_crates[i]);
	return sum;
}

static ssize_t depot_write(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	return depot_count() ? size : -ENOENT;
}

static const struct proc_ops depot_ops = { .proc_write = depot_write };

static int __init depot_init(void)
{
	proc_create("depot", 0200, NULL, &depot_ops);
	return 0;
}
module_init(depot_init);
MODULE_DESCRIPTION("Crates in a depot");
MODULE_LICENSE("GPL");
