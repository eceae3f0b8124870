// SPDX-License-Identifier: GPL-2.0
/* A chain of four: the planner waits for porters, a porter for a scale, the scale is in the hands of one who waits. */
#include <linux/completion.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/percpu-rwsem.h>
#include <linux/proc_fs.h>

DEFINE_STATIC_PERCPU_RWSEM(quay_traffic);
static DEFINE_MUTEX(quay_scale);
static DECLARE_COMPLETION(quay_papers);
static u64 quay_weight;

static noinline void quay_plan(void)
{
	percpu_down_write(&quay_traffic);
	quay_weight = 0;
	percpu_up_write(&quay_traffic);
}

static noinline void quay_carry(void)
{
	percpu_down_read(&quay_traffic);
	mutex_lock(&quay_scale);
	quay_weight++;
	mutex_unlock(&quay_scale);
	percpu_up_read(&quay_traffic);
}

static noinline void quay_inspect(void)
{
	mutex_lock(&quay_scale);
	wait_for_completion(&quay_papers);
	mutex_unlock(&quay_scale);
}

static ssize_t quay_write(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	char verb = 0;

	if (get_user(verb, text))
		return -EFAULT;
	if (verb == 'p')
		quay_plan();
	else if (verb == 'c')
		quay_carry();
	else
		quay_inspect();
	return size;
}

static const struct proc_ops quay_ops = { .proc_write = quay_write };

static int __init quay_init(void)
{
	proc_create("quay", 0200, NULL, &quay_ops);
	return 0;
}
module_init(quay_init);
MODULE_DESCRIPTION("A quay");
MODULE_LICENSE("GPL");
