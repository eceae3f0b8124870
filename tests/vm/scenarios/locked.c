// SPDX-License-Identifier: GPL-2.0
/*
 * locked: kernel threads that wait for each other, and for what never comes.
 *
 * abba-one holds left and wants right, abba-two the other way round. sem-reader
 * holds gate for reading and sleeps; sem-writer wants to write, sem-late to read
 * behind it. never-done waits for a completion that nobody completes, sem-taker for a
 * semaphore that is down, pcpu-writer for a per-CPU rwsem whose reader sleeps.
 * The queue locked_wq runs one item that does not end, with another behind it,
 * and wq-flusher flushes it; a delayed item waits for its timer.
 */
#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/err.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/percpu-rwsem.h>
#include <linux/rwsem.h>
#include <linux/sched.h>
#include <linux/semaphore.h>
#include <linux/workqueue.h>

static DEFINE_MUTEX(locked_left);
static DEFINE_MUTEX(locked_right);
static DECLARE_RWSEM(locked_gate);
static struct semaphore locked_count;
static DECLARE_COMPLETION(locked_done);
DEFINE_STATIC_PERCPU_RWSEM(locked_pcpu);
static struct workqueue_struct *locked_queue;

static void sleep_for_ever(void)
{
	for (;;)
		schedule_timeout_uninterruptible(3600 * HZ);
}

static void stuck_work(struct work_struct *work)
{
	sleep_for_ever();
}

static void behind_work(struct work_struct *work)
{
}

static DECLARE_WORK(locked_stuck, stuck_work);
static DECLARE_WORK(locked_behind, behind_work);
static DECLARE_DELAYED_WORK(locked_later, behind_work);

static int abba_one(void *data)
{
	mutex_lock(&locked_left);
	msleep(1500);
	mutex_lock(&locked_right);
	return 0;
}

static int abba_two(void *data)
{
	mutex_lock(&locked_right);
	msleep(1500);
	mutex_lock(&locked_left);
	return 0;
}

static int sem_reader(void *data)
{
	down_read(&locked_gate);
	sleep_for_ever();
	return 0;
}

static int sem_writer(void *data)
{
	msleep(1500);
	down_write(&locked_gate);
	return 0;
}

static int sem_late(void *data)
{
	msleep(4000);
	down_read(&locked_gate);
	return 0;
}

static int never_done(void *data)
{
	wait_for_completion(&locked_done);
	return 0;
}

static int sem_taker(void *data)
{
	down(&locked_count);
	return 0;
}

static int pcpu_reader(void *data)
{
	percpu_down_read(&locked_pcpu);
	sleep_for_ever();
	return 0;
}

static int pcpu_writer(void *data)
{
	msleep(1500);
	percpu_down_write(&locked_pcpu);
	return 0;
}

static int wq_flusher(void *data)
{
	msleep(1500);
	flush_workqueue(locked_queue);
	return 0;
}

static int __init locked_init(void)
{
	sema_init(&locked_count, 0);
	locked_queue = alloc_workqueue("locked_wq", WQ_UNBOUND, 1);
	if (!locked_queue)
		return -ENOMEM;
	queue_work(locked_queue, &locked_stuck);
	queue_work(locked_queue, &locked_behind);
	queue_delayed_work(locked_queue, &locked_later, 3600 * HZ);
	kthread_run(abba_one, NULL, "abba-one");
	kthread_run(abba_two, NULL, "abba-two");
	kthread_run(sem_reader, NULL, "sem-reader");
	kthread_run(sem_writer, NULL, "sem-writer");
	kthread_run(sem_late, NULL, "sem-late");
	kthread_run(never_done, NULL, "never-done");
	kthread_run(sem_taker, NULL, "sem-taker");
	kthread_run(pcpu_reader, NULL, "pcpu-reader");
	kthread_run(pcpu_writer, NULL, "pcpu-writer");
	kthread_run(wq_flusher, NULL, "wq-flusher");
	return 0;
}
module_init(locked_init);

MODULE_DESCRIPTION("Kernel threads that wait for ever");
MODULE_LICENSE("GPL");
