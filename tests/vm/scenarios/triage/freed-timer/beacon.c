// SPDX-License-Identifier: GPL-2.0
/* A beacon is freed while its timer is pending; the timer wheel finds what came after it. */
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/slab.h>
#include <linux/timer.h>

struct beacon {
	char harbour[24];
	struct timer_list timer;
	u32 blinks;
	u8 pattern[40];
};

#define BEACONS 40
static struct beacon *beacons[BEACONS];

static void beacon_blink(struct timer_list *timer)
{
	struct beacon *beacon = container_of(timer, struct beacon, timer);

	beacon->blinks++;
	mod_timer(&beacon->timer, jiffies + HZ);
}

static noinline void beacon_remove(int number)
{
	kfree(beacons[number]);
	beacons[number] = NULL;
}

static ssize_t beacon_write(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	int i;

	for (i = 10; i < 30; i++)
		beacon_remove(i);
	return size;
}

static const struct proc_ops beacon_ops = { .proc_write = beacon_write };

static int __init beacon_init(void)
{
	int i;

	for (i = 0; i < BEACONS; i++) {
		struct beacon *beacon = kzalloc(sizeof(*beacon), GFP_KERNEL);

		timer_setup(&beacon->timer, beacon_blink, 0);
		beacons[i] = beacon;
		mod_timer(&beacon->timer, jiffies + 3 * HZ + i * 2);
	}
	proc_create("beacon", 0200, NULL, &beacon_ops);
	return 0;
}
module_init(beacon_init);
MODULE_DESCRIPTION("Beacons");
MODULE_LICENSE("GPL");
