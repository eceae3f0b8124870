// SPDX-License-Identifier: GPL-2.0
/* A print job that waits for paper without being seen, and somebody who waits for all jobs. */
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

static DECLARE_WAIT_QUEUE_HEAD(press_paper);
static bool press_loaded;
static struct workqueue_struct *press_queue;

static void press_print(struct work_struct *work)
{
	wait_event_idle(press_paper, READ_ONCE(press_loaded));
}

static void press_fold(struct work_struct *work)
{
	pr_info("press: folded\n");
}

static DECLARE_WORK(press_job, press_print);
static DECLARE_WORK(press_next, press_fold);

static noinline void press_finish(void)
{
	flush_workqueue(press_queue);
}

static ssize_t press_write(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	char verb = 0;

	if (get_user(verb, text))
		return -EFAULT;
	if (verb == 'p') {
		queue_work(press_queue, &press_job);
		queue_work(press_queue, &press_next);
	} else {
		press_finish();
	}
	return size;
}

static const struct proc_ops press_ops = { .proc_write = press_write };

static int __init press_init(void)
{
	press_queue = alloc_ordered_workqueue("press", 0);
	proc_create("press", 0200, NULL, &press_ops);
	return press_queue ? 0 : -ENOMEM;
}
module_init(press_init);
MODULE_DESCRIPTION("A printing press");
MODULE_LICENSE("GPL");
