// SPDX-License-Identifier: GPL-2.0
/* More is reserved than there is. */
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/slab.h>

struct stock {
	char article[20];
	u32 reserved;
	u32 total;
	struct list_head link;
};

static LIST_HEAD(stock_list);

static noinline void stock_reserve(struct stock *stock, u32 count)
{
	stock->reserved += count;
	BUG_ON(stock->reserved > stock->total);
}

static noinline void stock_order(u32 count)
{
	struct stock *stock;

	list_for_each_entry(stock, &stock_list, link)
		stock_reserve(stock, count);
}

static ssize_t stock_write(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	stock_order(4);
	return size;
}

static const struct proc_ops stock_ops = { .proc_write = stock_write };

static int __init stock_init(void)
{
	int i;

	for (i = 0; i < 5; i++) {
		struct stock *stock = kzalloc(sizeof(*stock), GFP_KERNEL);

		stock->total = 17 - 2 * i;
		stock->reserved = 3 + i;
		list_add_tail(&stock->link, &stock_list);
	}
	proc_create("stock", 0200, NULL, &stock_ops);
	return 0;
}
module_init(stock_init);
MODULE_DESCRIPTION("What is in stock");
MODULE_LICENSE("GPL");
