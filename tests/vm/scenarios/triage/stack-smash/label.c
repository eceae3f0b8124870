// SPDX-License-Identifier: GPL-2.0
/* A label is put together in a buffer that is too short for it. */
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/slab.h>

static char *label_text;
static u32 label_length = 90;

static noinline void label_copy(char *to, const char *from, u32 length)
{
	u32 i;

	for (i = 0; i < length; i++)
		WRITE_ONCE(to[i], READ_ONCE(from[i]));
}

static noinline int label_print(u32 copies)
{
	char buffer[40];

	label_copy(buffer, label_text, READ_ONCE(label_length));
	return buffer[0] + buffer[39] + copies;
}

static ssize_t label_write(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	return label_print(2) ? size : -EIO;
}

static const struct proc_ops label_ops = { .proc_write = label_write };

static int __init label_init(void)
{
	label_text = kmalloc(128, GFP_KERNEL);
	memset(label_text, 'L', 128);
	proc_create("label", 0200, NULL, &label_ops);
	return 0;
}
module_init(label_init);
MODULE_DESCRIPTION("Labels");
MODULE_LICENSE("GPL");
