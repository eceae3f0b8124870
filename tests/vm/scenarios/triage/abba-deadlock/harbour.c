// SPDX-License-Identifier: GPL-2.0
/* Ships need a berth and a crane: those that come load, those that leave unload, in different orders. */
#include <linux/delay.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/proc_fs.h>

static DEFINE_MUTEX(harbour_berth);
static DEFINE_MUTEX(harbour_crane);
static DEFINE_MUTEX(harbour_office);
static u64 harbour_loads;

static noinline void harbour_dock(void)
{
	mutex_lock(&harbour_berth);
	msleep(1500);
	mutex_lock(&harbour_crane);
	harbour_loads++;
	mutex_unlock(&harbour_crane);
	mutex_unlock(&harbour_berth);
}

static noinline void harbour_leave(void)
{
	mutex_lock(&harbour_crane);
	msleep(1500);
	mutex_lock(&harbour_berth);
	harbour_loads--;
	mutex_unlock(&harbour_berth);
	mutex_unlock(&harbour_crane);
}

/* Waits like the others, and has somebody wait for itself: not part of the circle. */
static noinline void harbour_inspect(void)
{
	mutex_lock(&harbour_office);
	mutex_lock(&harbour_berth);
	mutex_unlock(&harbour_berth);
	mutex_unlock(&harbour_office);
}

static noinline void harbour_report(void)
{
	mutex_lock(&harbour_office);
	pr_info("harbour: %llu\n", harbour_loads);
	mutex_unlock(&harbour_office);
}

static ssize_t harbour_write(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	char verb = 0;

	if (get_user(verb, text))
		return -EFAULT;
	if (verb == 'd')
		harbour_dock();
	else if (verb == 'l')
		harbour_leave();
	else if (verb == 'i')
		harbour_inspect();
	else
		harbour_report();
	return size;
}

static const struct proc_ops harbour_ops = { .proc_write = harbour_write };

static int __init harbour_init(void)
{
	proc_create("harbour", 0200, NULL, &harbour_ops);
	return 0;
}
module_init(harbour_init);
MODULE_DESCRIPTION("Berths and cranes");
MODULE_LICENSE("GPL");
