// SPDX-License-Identifier: GPL-2.0
/* Visitors wait in a list; one that comes again is put into it again. */
#include <linux/list.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/slab.h>

struct visitor {
	u32 ticket;
	struct list_head link;
};

static LIST_HEAD(turnstile_line);
static struct visitor *turnstile_last;

static noinline void turnstile_admit(struct visitor *visitor)
{
	list_add_tail(&visitor->link, &turnstile_line);
	turnstile_last = visitor;
}

static ssize_t turnstile_write(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	struct visitor *visitor;
	char verb = 0;

	if (get_user(verb, text))
		return -EFAULT;
	if (verb == 'n' || !turnstile_last) {
		visitor = kzalloc(sizeof(*visitor), GFP_KERNEL);
		visitor->ticket = 77;
	} else {
		visitor = turnstile_last;
	}
	turnstile_admit(visitor);
	return size;
}

static const struct proc_ops turnstile_ops = { .proc_write = turnstile_write };

static int __init turnstile_init(void)
{
	proc_create("turnstile", 0200, NULL, &turnstile_ops);
	return 0;
}
module_init(turnstile_init);
MODULE_DESCRIPTION("A line of visitors");
MODULE_LICENSE("GPL");
