// SPDX-License-Identifier: GPL-2.0
/* A timer takes the lock that the code which it interrupts has taken. */
#include <linux/delay.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/spinlock.h>
#include <linux/timer.h>

static DEFINE_SPINLOCK(tollgate_till);
static struct timer_list tollgate_timer;
static u64 tollgate_coins;

static noinline void tollgate_tally(void)
{
	spin_lock(&tollgate_till);
	tollgate_coins++;
	spin_unlock(&tollgate_till);
}

static void tollgate_tick(struct timer_list *timer)
{
	tollgate_tally();
	mod_timer(timer, jiffies + HZ / 20);
}

static noinline void tollgate_pay(u32 ms)
{
	spin_lock(&tollgate_till);
	mdelay(ms);
	tollgate_coins += ms;
	spin_unlock(&tollgate_till);
}

static ssize_t tollgate_write(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	mod_timer(&tollgate_timer, jiffies + HZ / 20);
	tollgate_pay(400);
	return size;
}

static const struct proc_ops tollgate_ops = { .proc_write = tollgate_write };

static int __init tollgate_init(void)
{
	timer_setup(&tollgate_timer, tollgate_tick, TIMER_PINNED);
	proc_create("tollgate", 0200, NULL, &tollgate_ops);
	return 0;
}
module_init(tollgate_init);
MODULE_DESCRIPTION("A gate where one pays");
MODULE_LICENSE("GPL");
