// SPDX-License-Identifier: GPL-2.0
/* A tile from memory that is not cleared, of which one field is never set. */
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/slab.h>

struct mosaic_glaze {
	u64 tint;
};

struct mosaic_tile {
	u32 row;
	u32 column;
	char maker[112];
	struct mosaic_glaze *glaze;
};

#define TILES 120
static struct mosaic_tile *mosaic_tiles[TILES];
static struct mosaic_glaze mosaic_plain = { .tint = 7 };

static noinline void mosaic_dust(void)
{
	static void *dust[TILES];
	int i;

	for (i = 0; i < TILES; i++) {
		dust[i] = kmalloc(sizeof(struct mosaic_tile), GFP_KERNEL);
		memset(dust[i], 0xc3, sizeof(struct mosaic_tile));
	}
	for (i = 0; i < TILES; i++)
		kfree(dust[i]);
}

static noinline void mosaic_lay(void)
{
	int i;

	for (i = 0; i < TILES; i++) {
		struct mosaic_tile *tile = kmalloc(sizeof(*tile), GFP_KERNEL);

		tile->row = i / 12;
		tile->column = i % 12;
		strscpy(tile->maker, "Ravenna", sizeof(tile->maker));
		if (i != 77)
			tile->glaze = &mosaic_plain;
		mosaic_tiles[i] = tile;
	}
}

static noinline u64 mosaic_shine(struct mosaic_tile *tile)
{
	return tile->glaze->tint;
}

static ssize_t mosaic_write(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	u64 sum = 0;
	int i;

	for (i = 0; i < TILES; i++)
		sum += mosaic_shine(mosaic_tiles[i]);
	return sum ? size : -EIO;
}

static const struct proc_ops mosaic_ops = { .proc_write = mosaic_write };

static int __init mosaic_init(void)
{
	mosaic_dust();
	mosaic_lay();
	proc_create("mosaic", 0200, NULL, &mosaic_ops);
	return 0;
}
module_init(mosaic_init);
MODULE_DESCRIPTION("Tiles");
MODULE_LICENSE("GPL");
