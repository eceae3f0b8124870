// SPDX-License-Identifier: GPL-2.0
/* Stopping the mill waits for its thread with the lock held that the thread wants. */
#include <linux/delay.h>
#include <linux/err.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/proc_fs.h>

static DEFINE_MUTEX(windmill_brake);
static struct task_struct *windmill_thread;
static u64 windmill_turns;

static int windmill_turn(void *data)
{
	while (!kthread_should_stop()) {
		msleep(100);
		mutex_lock(&windmill_brake);
		windmill_turns++;
		mutex_unlock(&windmill_brake);
	}
	return 0;
}

static noinline void windmill_stop(void)
{
	mutex_lock(&windmill_brake);
	msleep(300);
	kthread_stop(windmill_thread);
	mutex_unlock(&windmill_brake);
}

static ssize_t windmill_write(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	windmill_stop();
	return size;
}

static const struct proc_ops windmill_ops = { .proc_write = windmill_write };

static int __init windmill_init(void)
{
	windmill_thread = kthread_run(windmill_turn, NULL, "windmill");
	proc_create("windmill", 0200, NULL, &windmill_ops);
	return PTR_ERR_OR_ZERO(windmill_thread);
}
module_init(windmill_init);
MODULE_DESCRIPTION("A windmill");
MODULE_LICENSE("GPL");
