// SPDX-License-Identifier: GPL-2.0
/* A lift with room for two; one of them never says that he has left. */
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/semaphore.h>

static struct semaphore lift_room;

static noinline void lift_enter(void)
{
	down(&lift_room);
}

static noinline void lift_ride(void)
{
	down(&lift_room);
	up(&lift_room);
}

static ssize_t lift_write(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	char verb = 0;

	if (get_user(verb, text))
		return -EFAULT;
	if (verb == 'e')
		lift_enter();
	else
		lift_ride();
	return size;
}

static const struct proc_ops lift_ops = { .proc_write = lift_write };

static int __init lift_init(void)
{
	sema_init(&lift_room, 2);
	proc_create("lift", 0200, NULL, &lift_ops);
	return 0;
}
module_init(lift_init);
MODULE_DESCRIPTION("A lift");
MODULE_LICENSE("GPL");
