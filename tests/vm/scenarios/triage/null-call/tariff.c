// SPDX-License-Identifier: GPL-2.0
/* A class of operations that lacks one, and a caller that does not ask whether it is there. */
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/slab.h>

struct tariff_ops {
	int (*open)(void *of);
	int (*price)(void *of, int units);
	int (*round)(void *of, int price);
};

struct tariff {
	char name[16];
	const struct tariff_ops *ops;
};

static noinline int tariff_flat_price(void *of, int units)
{
	return units * 7;
}

static const struct tariff_ops tariff_flat = { .price = tariff_flat_price };
static struct tariff *tariff_now;

static noinline int tariff_quote(struct tariff *tariff, int units)
{
	int price = tariff->ops->price(tariff, units);

	return tariff->ops->round(tariff, price) + 1;
}

static ssize_t tariff_write(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	return tariff_quote(tariff_now, 9) > 0 ? size : -EIO;
}

static const struct proc_ops tariff_proc = { .proc_write = tariff_write };

static int __init tariff_init(void)
{
	tariff_now = kzalloc(sizeof(*tariff_now), GFP_KERNEL);
	strscpy(tariff_now->name, "flat", sizeof(tariff_now->name));
	tariff_now->ops = &tariff_flat;
	proc_create("tariff", 0200, NULL, &tariff_proc);
	return 0;
}
module_init(tariff_init);
MODULE_DESCRIPTION("Tariffs");
MODULE_LICENSE("GPL");
