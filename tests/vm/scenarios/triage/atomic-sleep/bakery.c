// SPDX-License-Identifier: GPL-2.0
/* Sleeps with a spinlock held, three functions further down. */
#include <linux/delay.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/spinlock.h>

static DEFINE_SPINLOCK(bakery_oven);
static u32 bakery_loaves;

static noinline void bakery_wait(u32 minutes)
{
	msleep(minutes);
	bakery_loaves++;
}

static noinline void bakery_rise(u32 minutes)
{
	if (minutes > 3)
		bakery_wait(minutes);
	bakery_loaves += 2;
}

static noinline void bakery_bake(u32 minutes)
{
	spin_lock(&bakery_oven);
	bakery_rise(minutes);
	spin_unlock(&bakery_oven);
}

static ssize_t bakery_write(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	bakery_bake(size * 20);
	return size;
}

static const struct proc_ops bakery_ops = { .proc_write = bakery_write };

static int __init bakery_init(void)
{
	proc_create("bakery", 0200, NULL, &bakery_ops);
	return 0;
}
module_init(bakery_init);
MODULE_DESCRIPTION("A bakery");
MODULE_LICENSE("GPL");
