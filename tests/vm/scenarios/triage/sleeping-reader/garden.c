// SPDX-License-Identifier: GPL-2.0
/* A gardener has the gate for reading and waits for the rain; a writer and later readers wait behind. */
#include <linux/completion.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/rwsem.h>

static DECLARE_RWSEM(garden_gate);
static DECLARE_COMPLETION(garden_rain);
static u32 garden_beds = 12;

static noinline void garden_water(void)
{
	down_read(&garden_gate);
	wait_for_completion(&garden_rain);
	up_read(&garden_gate);
}

static noinline void garden_dig(void)
{
	down_write(&garden_gate);
	garden_beds++;
	up_write(&garden_gate);
}

static noinline u32 garden_visit(void)
{
	u32 beds;

	down_read(&garden_gate);
	beds = garden_beds;
	up_read(&garden_gate);
	return beds;
}

static ssize_t garden_write(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	char verb = 0;

	if (get_user(verb, text))
		return -EFAULT;
	if (verb == 'w')
		garden_water();
	else if (verb == 'd')
		garden_dig();
	else if (!garden_visit())
		return -ENOENT;
	return size;
}

static const struct proc_ops garden_ops = { .proc_write = garden_write };

static int __init garden_init(void)
{
	proc_create("garden", 0200, NULL, &garden_ops);
	return 0;
}
module_init(garden_init);
MODULE_DESCRIPTION("A garden and its gate");
MODULE_LICENSE("GPL");
