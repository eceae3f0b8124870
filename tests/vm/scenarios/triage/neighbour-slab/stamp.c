// SPDX-License-Identifier: GPL-2.0
/* Cards that get stamps: more than there is room for, on one of them. */
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/slab.h>

struct stamp_card {
	u64 owner;
	u16 places[44];
};

#define CARDS 170
static struct stamp_card *stamp_cards[CARDS];
extern void *depot_make(u32 number);

static noinline void stamp_fill(struct stamp_card *card, int count)
{
	int i;

	for (i = 0; i < count; i++)
		WRITE_ONCE(((u16 *)card)[4 + i], 0xa11c);
}

static ssize_t stamp_write(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	int i;

	for (i = 0; i < CARDS; i++)
		/* The first ones have neighbours that were there before. */
		if (i % 10 == 3 && i > 60)
			stamp_fill(stamp_cards[i], 48);
		else
			stamp_fill(stamp_cards[i], 20);
	return size;
}

static const struct proc_ops stamp_ops = { .proc_write = stamp_write };

static int __init stamp_init(void)
{
	int i;

	for (i = 0; i < CARDS; i++) {
		stamp_cards[i] = kzalloc(sizeof(struct stamp_card), GFP_KERNEL);
		stamp_cards[i]->owner = 5000 + i;
		depot_make(i);
	}
	proc_create("stamp", 0200, NULL, &stamp_ops);
	return 0;
}
module_init(stamp_init);
MODULE_DESCRIPTION("Cards with stamps");
MODULE_LICENSE("GPL");
