// SPDX-License-Identifier: GPL-2.0
/* A guard that an early return leaves locked; whoever comes next spins. */
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/spinlock.h>

static DEFINE_SPINLOCK(meter_guard);
static u64 meter_value;

static noinline int meter_adjust(int by)
{
	spin_lock(&meter_guard);
	if (by > 100)
		return -ERANGE;
	meter_value += by;
	spin_unlock(&meter_guard);
	return 0;
}

static noinline u64 meter_sum(void)
{
	u64 value;

	spin_lock(&meter_guard);
	value = meter_value + 1;
	spin_unlock(&meter_guard);
	return value;
}

static ssize_t meter_write(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	char verb = 0;

	if (get_user(verb, text))
		return -EFAULT;
	if (verb == 'a')
		return meter_adjust(size * 100) ?: size;
	return meter_sum() ? size : -EIO;
}

static const struct proc_ops meter_ops = { .proc_write = meter_write };

static int __init meter_init(void)
{
	proc_create("meter", 0200, NULL, &meter_ops);
	return 0;
}
module_init(meter_init);
MODULE_DESCRIPTION("A meter");
MODULE_LICENSE("GPL");
