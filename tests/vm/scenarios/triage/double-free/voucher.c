// SPDX-License-Identifier: GPL-2.0
/* A voucher is redeemed, and freed; cancelling it frees it once more. */
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/slab.h>

struct voucher {
	u64 serial;
	u8 terms[300];
};

static struct voucher *voucher_now;

static noinline void voucher_redeem(struct voucher *voucher)
{
	voucher->serial = 0;
	kfree(voucher);
}

static noinline void voucher_cancel(struct voucher *voucher)
{
	kfree(voucher);
	pr_info("voucher: cancelled\n");
}

static ssize_t voucher_write(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	voucher_redeem(voucher_now);
	voucher_cancel(voucher_now);
	return size;
}

static const struct proc_ops voucher_ops = { .proc_write = voucher_write };

static int __init voucher_init(void)
{
	voucher_now = kzalloc(sizeof(*voucher_now), GFP_KERNEL);
	voucher_now->serial = 9;
	proc_create("voucher", 0200, NULL, &voucher_ops);
	return 0;
}
module_init(voucher_init);
MODULE_DESCRIPTION("Vouchers");
MODULE_LICENSE("GPL");
