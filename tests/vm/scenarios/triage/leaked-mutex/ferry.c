// SPDX-License-Identifier: GPL-2.0
/* A gate that is closed for a reservation, and stays so where the reservation is refused. */
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/proc_fs.h>

static DEFINE_MUTEX(ferry_gate);
static u32 ferry_seats = 3;

static noinline int ferry_reserve(u32 seats)
{
	mutex_lock(&ferry_gate);
	if (seats > READ_ONCE(ferry_seats))
		return -ENOSPC;
	ferry_seats -= seats;
	mutex_unlock(&ferry_gate);
	return 0;
}

static noinline void ferry_board(void)
{
	mutex_lock(&ferry_gate);
	ferry_seats--;
	mutex_unlock(&ferry_gate);
}

static ssize_t ferry_write(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	char verb = 0;

	if (get_user(verb, text))
		return -EFAULT;
	if (verb == 'r')
		return ferry_reserve(9) ?: size;
	ferry_board();
	return size;
}

static const struct proc_ops ferry_ops = { .proc_write = ferry_write };

static int __init ferry_init(void)
{
	proc_create("ferry", 0200, NULL, &ferry_ops);
	return 0;
}
module_init(ferry_init);
MODULE_DESCRIPTION("A ferry and its seats");
MODULE_LICENSE("GPL");
