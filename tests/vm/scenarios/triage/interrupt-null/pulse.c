// SPDX-License-Identifier: GPL-2.0
/* A timer's interrupt feeds a sink, which is taken away while the timer runs. */
#include <linux/hrtimer.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/slab.h>
#include <linux/version.h>

struct pulse_sink {
	u64 beats;
	u64 level[6];
};

struct pulse {
	struct hrtimer timer;
	struct pulse_sink *sink;
};

static struct pulse *pulse_now;

static noinline void pulse_feed(struct pulse *pulse)
{
	struct pulse_sink *sink = READ_ONCE(pulse->sink);

	sink->level[3] += 5;
}

static enum hrtimer_restart pulse_beat(struct hrtimer *timer)
{
	pulse_feed(container_of(timer, struct pulse, timer));
	hrtimer_forward_now(timer, ms_to_ktime(20));
	return HRTIMER_RESTART;
}

static ssize_t pulse_write(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	WRITE_ONCE(pulse_now->sink, NULL);
	return size;
}

static const struct proc_ops pulse_ops = { .proc_write = pulse_write };

static int __init pulse_init(void)
{
	pulse_now = kzalloc(sizeof(*pulse_now), GFP_KERNEL);
	pulse_now->sink = kzalloc(sizeof(*pulse_now->sink), GFP_KERNEL);
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 13, 0)
	hrtimer_setup(&pulse_now->timer, pulse_beat, CLOCK_MONOTONIC, HRTIMER_MODE_REL);
#else
	hrtimer_init(&pulse_now->timer, CLOCK_MONOTONIC, HRTIMER_MODE_REL);
	pulse_now->timer.function = pulse_beat;
#endif
	hrtimer_start(&pulse_now->timer, ms_to_ktime(20), HRTIMER_MODE_REL);
	proc_create("pulse", 0200, NULL, &pulse_ops);
	return 0;
}
module_init(pulse_init);
MODULE_DESCRIPTION("A pulse");
MODULE_LICENSE("GPL");
