// SPDX-License-Identifier: GPL-2.0
/* Letters are delivered by the function that their route names; one route was never filled in properly. */
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/slab.h>

struct courier_route {
	char town[24];
	u32 miles;
	u32 fee;
	int (*send)(struct courier_route *route, int weight);
};

static struct courier_route *courier_routes[4];

static noinline int courier_by_road(struct courier_route *route, int weight)
{
	return route->miles * weight;
}

static noinline int courier_deliver(struct courier_route *route, int weight)
{
	int price = route->send(route, weight);

	return price + route->fee;
}

static noinline int courier_run(int weight)
{
	int i, sum = 0;

	for (i = 0; i < 4; i++)
		sum += courier_deliver(courier_routes[i], weight);
	return sum;
}

static ssize_t courier_write(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	return courier_run(12) ? size : -EIO;
}

static const struct proc_ops courier_ops = { .proc_write = courier_write };

static int __init courier_init(void)
{
	int i;

	for (i = 0; i < 4; i++) {
		courier_routes[i] = kzalloc(sizeof(struct courier_route), GFP_KERNEL);
		courier_routes[i]->miles = 10 + i;
		courier_routes[i]->send = courier_by_road;
	}
	/* A pointer to data where one to code belongs. */
	courier_routes[2]->send = (void *)courier_routes[1];
	proc_create("courier", 0200, NULL, &courier_ops);
	return 0;
}
module_init(courier_init);
MODULE_DESCRIPTION("Couriers and their routes");
MODULE_LICENSE("GPL");
