// SPDX-License-Identifier: GPL-2.0
/* A pointer of a process is used as if it were the kernel's own. */
#include <linux/module.h>
#include <linux/proc_fs.h>

struct census_form {
	u32 rooms;
	u32 people;
};

static noinline u32 census_enter(const struct census_form *form)
{
	return READ_ONCE(form->people) + 1;
}

static ssize_t census_write(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	return census_enter((const void __force *)text) ? size : -EINVAL;
}

static const struct proc_ops census_ops = { .proc_write = census_write };

static int __init census_init(void)
{
	proc_create("census", 0200, NULL, &census_ops);
	return 0;
}
module_init(census_init);
MODULE_DESCRIPTION("A census");
MODULE_LICENSE("GPL");
