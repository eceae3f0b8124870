// SPDX-License-Identifier: GPL-2.0
/*
 * both: two CPUs warn at the same moment, and two seconds later read through
 * a null pointer at the same moment.
 */
#include <linux/atomic.h>
#include <linux/delay.h>
#include <linux/err.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/sched.h>

static atomic_t both_there[2];
static int *both_nothing;

static void both_meet(int round)
{
	atomic_inc(&both_there[round]);
	while (atomic_read(&both_there[round]) < 2)
		cpu_relax();
}

static noinline int both_left(int *from)
{
	return READ_ONCE(from[16]) + 1;
}

static noinline int both_right(int *from)
{
	return READ_ONCE(from[64]) + 2;
}

static noinline void both_warn_left(void)
{
	WARN(1, "both: the left one warns\n");
}

static noinline void both_warn_right(void)
{
	WARN(1, "both: the right one warns\n");
}

static int left(void *data)
{
	both_meet(0);
	both_warn_left();
	msleep(2000);
	both_meet(1);
	return both_left(READ_ONCE(both_nothing));
}

static int right(void *data)
{
	both_meet(0);
	both_warn_right();
	msleep(2000);
	both_meet(1);
	return both_right(READ_ONCE(both_nothing));
}

static int __init both_init(void)
{
	struct task_struct *one = kthread_create(left, NULL, "both-left");
	struct task_struct *other = kthread_create(right, NULL, "both-right");

	if (IS_ERR(one) || IS_ERR(other))
		return -ENOMEM;
	kthread_bind(one, 0);
	kthread_bind(other, 1);
	wake_up_process(one);
	wake_up_process(other);
	return 0;
}
module_init(both_init);

MODULE_DESCRIPTION("Two CPUs crash at once");
MODULE_LICENSE("GPL");
