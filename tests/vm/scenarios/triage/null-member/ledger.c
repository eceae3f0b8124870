// SPDX-License-Identifier: GPL-2.0
/* A batch is posted to its account; the account of the last entry has no book. */
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/slab.h>

struct book {
	char title[40];
	u64 total;
	struct list_head pages;
};

struct account {
	u32 number;
	char owner[28];
	struct book *book;
	spinlock_t guard;
};

struct entry {
	struct list_head link;
	struct account *account;
	u64 amount;
};

static LIST_HEAD(ledger_batch);
static struct account *ledger_accounts[3];

static noinline void ledger_post(struct entry *entry)
{
	struct book *book = READ_ONCE(entry->account->book);

	book->total += entry->amount;
}

static noinline int ledger_run_batch(struct list_head *batch)
{
	struct entry *entry;
	int count = 0;

	list_for_each_entry(entry, batch, link) {
		ledger_post(entry);
		count++;
	}
	return count;
}

static noinline int ledger_close_day(int day)
{
	int count = ledger_run_batch(&ledger_batch);

	pr_info("ledger: day %d, %d entries\n", day, count);
	return count;
}

static ssize_t ledger_write(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	ledger_close_day(7);
	return size;
}

static const struct proc_ops ledger_ops = { .proc_write = ledger_write };

static int __init ledger_init(void)
{
	int i;

	for (i = 0; i < 3; i++) {
		struct account *account = kzalloc(sizeof(*account), GFP_KERNEL);
		struct entry *entry = kzalloc(sizeof(*entry), GFP_KERNEL);

		account->number = 1000 + i;
		spin_lock_init(&account->guard);
		if (i < 2)
			account->book = kzalloc(sizeof(struct book), GFP_KERNEL);
		ledger_accounts[i] = account;
		entry->account = account;
		entry->amount = 100 * i;
		list_add_tail(&entry->link, &ledger_batch);
	}
	proc_create("ledger", 0200, NULL, &ledger_ops);
	return 0;
}
module_init(ledger_init);
MODULE_DESCRIPTION("Accounts and their books");
MODULE_LICENSE("GPL");
