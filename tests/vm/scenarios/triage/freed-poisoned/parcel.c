// SPDX-License-Identifier: GPL-2.0
/* Parcels in a tree by number; one is dropped without being taken out. */
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/rbtree.h>
#include <linux/slab.h>

struct parcel {
	struct rb_node node;
	u32 number;
	u32 weight;
	struct parcel_route *route;
};

struct parcel_route {
	u32 zone;
	u32 stops;
};

static struct rb_root parcel_tree = RB_ROOT;
static struct parcel *parcel_last;

static noinline void parcel_drop(struct parcel *parcel)
{
	kfree(parcel->route);
	kfree(parcel);
}

static noinline u32 parcel_zone(struct parcel *parcel)
{
	return parcel->route->zone;
}

static noinline u32 parcel_scan(u32 zone)
{
	struct parcel *parcel = parcel_last;

	return parcel_zone(parcel) == zone;
}

static ssize_t parcel_write(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	char verb = 0;

	if (get_user(verb, text))
		return -EFAULT;
	if (verb == 'd')
		parcel_drop(parcel_last);
	else if (parcel_scan(3))
		return -EBUSY;
	return size;
}

static const struct proc_ops parcel_ops = { .proc_write = parcel_write };

static void parcel_add(u32 number)
{
	struct rb_node **link = &parcel_tree.rb_node, *parent = NULL;
	struct parcel *parcel = kzalloc(sizeof(*parcel), GFP_KERNEL);

	parcel->number = number;
	parcel->route = kzalloc(sizeof(*parcel->route), GFP_KERNEL);
	while (*link) {
		parent = *link;
		link = number < rb_entry(parent, struct parcel, node)->number ? &parent->rb_left : &parent->rb_right;
	}
	rb_link_node(&parcel->node, parent, link);
	rb_insert_color(&parcel->node, &parcel_tree);
	parcel_last = parcel;
}

static int __init parcel_init(void)
{
	u32 i;

	for (i = 0; i < 40; i++)
		parcel_add(i * 37 % 64);
	proc_create("parcel", 0200, NULL, &parcel_ops);
	return 0;
}
module_init(parcel_init);
MODULE_DESCRIPTION("Parcels by number");
MODULE_LICENSE("GPL");
