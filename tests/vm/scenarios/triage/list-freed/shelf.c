// SPDX-License-Identifier: GPL-2.0
/* Books on a shelf: one that is thrown away is still between its neighbours. */
#include <linux/list.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/slab.h>

struct shelf_book {
	struct list_head link;
	char title[40];
	u64 loans;
};

#define BOOKS 200
static LIST_HEAD(shelf_row);
static struct shelf_book *shelf_books[BOOKS];
static void *shelf_notes[BOOKS];

static noinline void shelf_discard(int number)
{
	kfree(shelf_books[number]);
}

static noinline void shelf_take(int number)
{
	list_del(&shelf_books[number]->link);
	shelf_books[number]->loans++;
}

/* Innocent: has memory of the same size, and fills it. */
static noinline void shelf_annotate(void)
{
	int i;

	for (i = 0; i < BOOKS; i++) {
		shelf_notes[i] = kmalloc(sizeof(struct shelf_book), GFP_KERNEL);
		memset(shelf_notes[i], 0x20 + i % 64, sizeof(struct shelf_book));
	}
}

static ssize_t shelf_write(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	char verb = 0;

	if (get_user(verb, text))
		return -EFAULT;
	if (verb == 'd')
		shelf_discard(99);
	else if (verb == 'a')
		shelf_annotate();
	else
		shelf_take(100);
	return size;
}

static const struct proc_ops shelf_ops = { .proc_write = shelf_write };

static int __init shelf_init(void)
{
	int i;

	for (i = 0; i < BOOKS; i++) {
		shelf_books[i] = kzalloc(sizeof(struct shelf_book), GFP_KERNEL);
		snprintf(shelf_books[i]->title, sizeof(shelf_books[i]->title), "volume %d", i);
		list_add_tail(&shelf_books[i]->link, &shelf_row);
	}
	proc_create("shelf", 0200, NULL, &shelf_ops);
	return 0;
}
module_init(shelf_init);
MODULE_DESCRIPTION("A shelf of books");
MODULE_LICENSE("GPL");
