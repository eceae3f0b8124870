// SPDX-License-Identifier: GPL-2.0
/* Stations in a ring that a search goes round, and round. */
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/rcupdate.h>
#include <linux/slab.h>

struct orbit_station {
	struct orbit_station *next;
	u32 number;
	u32 crew;
};

static struct orbit_station *orbit_first;

static noinline struct orbit_station *orbit_find(u32 number)
{
	struct orbit_station *station;

	rcu_read_lock();
	for (station = rcu_dereference(orbit_first); station; station = READ_ONCE(station->next))
		if (READ_ONCE(station->number) == number)
			break;
	rcu_read_unlock();
	return station;
}

static ssize_t orbit_write(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	return orbit_find(44) ? size : -ENOENT;
}

static const struct proc_ops orbit_ops = { .proc_write = orbit_write };

static int __init orbit_init(void)
{
	struct orbit_station *last = NULL;
	int i;

	for (i = 0; i < 8; i++) {
		struct orbit_station *station = kzalloc(sizeof(*station), GFP_KERNEL);

		station->number = i;
		station->next = orbit_first;
		orbit_first = station;
		if (!last)
			last = station;
	}
	last->next = orbit_first->next->next;
	proc_create("orbit", 0200, NULL, &orbit_ops);
	return 0;
}
module_init(orbit_init);
MODULE_DESCRIPTION("Stations");
MODULE_LICENSE("GPL");
