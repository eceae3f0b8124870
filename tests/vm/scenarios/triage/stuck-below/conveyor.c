// SPDX-License-Identifier: GPL-2.0
/* One CPU polls a machine with a lock held, another one wants the lock. */
#include <linux/module.h>
#include <linux/nmi.h>
#include <linux/proc_fs.h>
#include <linux/spinlock.h>

static DEFINE_SPINLOCK(conveyor_guard);
static u32 conveyor_status;
static u64 conveyor_moved;

static noinline void conveyor_settle(void)
{
	spin_lock(&conveyor_guard);
	while (!READ_ONCE(conveyor_status)) {
		touch_softlockup_watchdog();
		cpu_relax();
	}
	conveyor_moved++;
	spin_unlock(&conveyor_guard);
}

static noinline u64 conveyor_count(void)
{
	u64 moved;

	spin_lock(&conveyor_guard);
	moved = conveyor_moved;
	spin_unlock(&conveyor_guard);
	return moved;
}

static ssize_t conveyor_write(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	char verb = 0;

	if (get_user(verb, text))
		return -EFAULT;
	if (verb == 's')
		conveyor_settle();
	else
		conveyor_count();
	return size;
}

static const struct proc_ops conveyor_ops = { .proc_write = conveyor_write };

static int __init conveyor_init(void)
{
	proc_create("conveyor", 0200, NULL, &conveyor_ops);
	return 0;
}
module_init(conveyor_init);
MODULE_DESCRIPTION("A conveyor and its status");
MODULE_LICENSE("GPL");
