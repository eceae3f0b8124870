// SPDX-License-Identifier: GPL-2.0
/* A module that is taken out while its timer is pending. */
#include <linux/module.h>
#include <linux/timer.h>

static struct timer_list parade_timer;

static void parade_step(struct timer_list *timer)
{
	mod_timer(timer, jiffies + HZ);
}

static int __init parade_init(void)
{
	timer_setup(&parade_timer, parade_step, 0);
	mod_timer(&parade_timer, jiffies + 2 * HZ);
	return 0;
}

static void __exit parade_exit(void)
{
}
module_init(parade_init);
module_exit(parade_exit);
MODULE_DESCRIPTION("A parade");
MODULE_LICENSE("GPL");
