// SPDX-License-Identifier: GPL-2.0
/* Who inherits from whom: a family tree with a circle in it. */
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/slab.h>

struct heir {
	struct heir *first;
	struct heir *second;
	u32 share;
};

static struct heir *heirloom_root;
static u64 heirloom_sum(struct heir *heir, u32 depth);

static noinline u64 heirloom_divide(struct heir *heir, u32 depth)
{
	volatile u32 part = heir->share;

	return heirloom_sum(heir->first, depth + 1) + part;
}

static noinline u64 heirloom_sum(struct heir *heir, u32 depth)
{
	volatile u32 held = depth;

	if (!heir)
		return held;
	return heirloom_divide(heir, depth + 1) * 2 + held;
}

static ssize_t heirloom_write(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	return heirloom_sum(heirloom_root, 0) ? size : -EIO;
}

static const struct proc_ops heirloom_ops = { .proc_write = heirloom_write };

static int __init heirloom_init(void)
{
	struct heir *heirs[5];
	int i;

	for (i = 0; i < 5; i++) {
		heirs[i] = kzalloc(sizeof(*heirs[i]), GFP_KERNEL);
		heirs[i]->share = i;
		if (i)
			heirs[i - 1]->first = heirs[i];
	}
	heirs[4]->first = heirs[1];
	heirloom_root = heirs[0];
	proc_create("heirloom", 0200, NULL, &heirloom_ops);
	return 0;
}
module_init(heirloom_init);
MODULE_DESCRIPTION("Heirs");
MODULE_LICENSE("GPL");
