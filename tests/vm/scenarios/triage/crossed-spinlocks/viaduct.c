// SPDX-License-Identifier: GPL-2.0
/* Trains from both sides take the signals in the order in which they come to them. */
#include <linux/delay.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/spinlock.h>

static DEFINE_SPINLOCK(viaduct_east);
static DEFINE_SPINLOCK(viaduct_west);
static u64 viaduct_trains;

static noinline void viaduct_go_west(void)
{
	spin_lock(&viaduct_east);
	mdelay(800);
	spin_lock(&viaduct_west);
	viaduct_trains++;
	spin_unlock(&viaduct_west);
	spin_unlock(&viaduct_east);
}

static noinline void viaduct_go_east(void)
{
	spin_lock(&viaduct_west);
	mdelay(800);
	spin_lock(&viaduct_east);
	viaduct_trains--;
	spin_unlock(&viaduct_east);
	spin_unlock(&viaduct_west);
}

static ssize_t viaduct_write(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	char verb = 0;

	if (get_user(verb, text))
		return -EFAULT;
	if (verb == 'w')
		viaduct_go_west();
	else
		viaduct_go_east();
	return size;
}

static const struct proc_ops viaduct_ops = { .proc_write = viaduct_write };

static int __init viaduct_init(void)
{
	proc_create("viaduct", 0200, NULL, &viaduct_ops);
	return 0;
}
module_init(viaduct_init);
MODULE_DESCRIPTION("A viaduct with one track");
MODULE_LICENSE("GPL");
