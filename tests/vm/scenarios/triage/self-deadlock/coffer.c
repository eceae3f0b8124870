// SPDX-License-Identifier: GPL-2.0
/* An audit that counts, and counting takes the lock that the audit has. */
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/proc_fs.h>
#include <linux/slab.h>

struct coffer {
	u64 coins;
	struct mutex lid;
};

static struct coffer *coffer_now;

static noinline u64 coffer_total(struct coffer *coffer)
{
	u64 coins;

	mutex_lock(&coffer->lid);
	coins = coffer->coins;
	mutex_unlock(&coffer->lid);
	return coins;
}

static noinline u64 coffer_audit(struct coffer *coffer)
{
	u64 coins;

	mutex_lock(&coffer->lid);
	coins = coffer_total(coffer);
	mutex_unlock(&coffer->lid);
	return coins;
}

static ssize_t coffer_write(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	char verb = 0;

	if (get_user(verb, text))
		return -EFAULT;
	if (verb == 'a')
		coffer_audit(coffer_now);
	else
		coffer_total(coffer_now);
	return size;
}

static const struct proc_ops coffer_ops = { .proc_write = coffer_write };

static int __init coffer_init(void)
{
	coffer_now = kzalloc(sizeof(*coffer_now), GFP_KERNEL);
	mutex_init(&coffer_now->lid);
	proc_create("coffer", 0200, NULL, &coffer_ops);
	return 0;
}
module_init(coffer_init);
MODULE_DESCRIPTION("A coffer");
MODULE_LICENSE("GPL");
