// SPDX-License-Identifier: GPL-2.0
/* Maps and their sheets; memory that is not what it should be loses a bit. */
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/slab.h>

struct atlas_sheet {
	u64 scale;
	struct list_head link;
	u8 raster[200];
};

#define SHEETS 30
static struct atlas_sheet **atlas_sheets;

static noinline u64 atlas_scale(struct atlas_sheet *sheet)
{
	return sheet->scale;
}

static noinline u64 atlas_browse(void)
{
	u64 sum = 0;
	int i;

	for (i = 0; i < SHEETS; i++)
		sum += atlas_scale(atlas_sheets[i]);
	return sum;
}

static ssize_t atlas_write(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	return atlas_browse() ? size : -EIO;
}

static const struct proc_ops atlas_ops = { .proc_write = atlas_write };

static int __init atlas_init(void)
{
	int i;

	atlas_sheets = kcalloc(SHEETS, sizeof(*atlas_sheets), GFP_KERNEL);
	for (i = 0; i < SHEETS; i++) {
		atlas_sheets[i] = kzalloc(sizeof(struct atlas_sheet), GFP_KERNEL);
		atlas_sheets[i]->scale = 25000;
	}
	/* What a particle or a bad module of memory does. */
	((unsigned long *)atlas_sheets)[21] ^= 1UL << 42;
	proc_create("atlas", 0200, NULL, &atlas_ops);
	return 0;
}
module_init(atlas_init);
MODULE_DESCRIPTION("Maps");
MODULE_LICENSE("GPL");
