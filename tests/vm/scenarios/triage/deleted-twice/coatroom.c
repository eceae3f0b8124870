// SPDX-License-Identifier: GPL-2.0
/* A coat is handed out; it is taken off its rack again when the evening ends. */
#include <linux/list.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/slab.h>

struct coat {
	u32 number;
	u32 colour;
	struct list_head rack;
};

static LIST_HEAD(coatroom_rack);
static struct coat *coatroom_coats[6];

static noinline void coatroom_remove(struct coat *coat)
{
	list_del(&coat->rack);
	coat->colour = 0;
}

static ssize_t coatroom_write(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	int i, first = size > 3 ? 0 : 4;

	for (i = first; i < 6; i++)
		coatroom_remove(coatroom_coats[i]);
	return size;
}

static const struct proc_ops coatroom_ops = { .proc_write = coatroom_write };

static int __init coatroom_init(void)
{
	int i;

	for (i = 0; i < 6; i++) {
		coatroom_coats[i] = kzalloc(sizeof(struct coat), GFP_KERNEL);
		coatroom_coats[i]->number = 500 + i;
		list_add(&coatroom_coats[i]->rack, &coatroom_rack);
	}
	proc_create("coatroom", 0200, NULL, &coatroom_ops);
	return 0;
}
module_init(coatroom_init);
MODULE_DESCRIPTION("Coats on a rack");
MODULE_LICENSE("GPL");
