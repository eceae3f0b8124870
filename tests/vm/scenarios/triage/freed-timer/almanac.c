// SPDX-License-Identifier: GPL-2.0
/* Days with a line of text each. Does nothing wrong. */
#include <linux/module.h>
#include <linux/slab.h>

struct almanac_day {
	char saint[56];
	u8 weather[72];
};

#define DAYS 300
static struct almanac_day *almanac_days[DAYS];

static int __init almanac_init(void)
{
	int i;

	for (i = 0; i < DAYS; i++) {
		almanac_days[i] = kmalloc(sizeof(struct almanac_day), GFP_KERNEL);
		memset(almanac_days[i]->saint, 'a' + i % 26, 40);
	}
	return 0;
}
module_init(almanac_init);
MODULE_DESCRIPTION("Days of the year");
MODULE_LICENSE("GPL");
