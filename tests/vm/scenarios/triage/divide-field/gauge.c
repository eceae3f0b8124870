// SPDX-License-Identifier: GPL-2.0
/* The mean of the samples of a gauge, of which one has none. */
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/slab.h>

struct gauge {
	char place[16];
	u32 sum;
	u32 samples;
	struct gauge *next;
};

static struct gauge *gauge_first;

static noinline u32 gauge_mean(const struct gauge *gauge)
{
	return READ_ONCE(gauge->sum) / READ_ONCE(gauge->samples);
}

static noinline u32 gauge_report(void)
{
	const struct gauge *gauge;
	u32 top = 0;

	for (gauge = gauge_first; gauge; gauge = gauge->next)
		top = max(top, gauge_mean(gauge));
	return top;
}

static ssize_t gauge_write(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	return gauge_report() ? size : -ENODATA;
}

static const struct proc_ops gauge_ops = { .proc_write = gauge_write };

static int __init gauge_init(void)
{
	int i;

	for (i = 0; i < 6; i++) {
		struct gauge *gauge = kzalloc(sizeof(*gauge), GFP_KERNEL);

		gauge->sum = 900 + i;
		gauge->samples = i % 4;
		gauge->next = gauge_first;
		gauge_first = gauge;
	}
	proc_create("gauge", 0200, NULL, &gauge_ops);
	return 0;
}
module_init(gauge_init);
MODULE_DESCRIPTION("Gauges");
MODULE_LICENSE("GPL");
