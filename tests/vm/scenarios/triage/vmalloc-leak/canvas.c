// SPDX-License-Identifier: GPL-2.0
/* Canvases of a mebibyte each that nobody rolls up again. */
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/vmalloc.h>

#define CANVAS_BYTES (1UL << 20)
static u32 canvas_count;

static noinline void *canvas_stretch(void)
{
	char *canvas = vmalloc(CANVAS_BYTES);

	if (canvas) {
		memset(canvas, 0x3c, 4096);
		canvas_count++;
	}
	return canvas;
}

static ssize_t canvas_write(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	int i;

	for (i = 0; i < 10; i++)
		if (!canvas_stretch())
			return -ENOMEM;
	return size;
}

static const struct proc_ops canvas_ops = { .proc_write = canvas_write };

static int __init canvas_init(void)
{
	proc_create("canvas", 0200, NULL, &canvas_ops);
	return 0;
}
module_init(canvas_init);
MODULE_DESCRIPTION("Canvases");
MODULE_LICENSE("GPL");
