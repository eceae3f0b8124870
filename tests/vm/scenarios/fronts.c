// SPDX-License-Identifier: GPL-2.0
/*
 * fronts: what a kernel without PSTORE_CONSOLE, PSTORE_PMSG and PSTORE_FTRACE
 * lacks, for the backend that is registered: a console, /dev/pmsg0, and some
 * function entries. The backend writes them as it would for the kernel's own.
 */
#include <linux/atomic.h>
#include <linux/console.h>
#include <linux/fs.h>
#include <linux/kprobes.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/pstore.h>
#include <linux/smp.h>

static struct pstore_info *backend;
static unsigned long (*find)(const char *name);
static atomic64_t stamp;

static void start_record(struct pstore_record *record, enum pstore_type_id type)
{
	memset(record, 0, sizeof(*record));
	record->psi = backend;
	record->type = type;
}

static void console_out(struct console *console, const char *text, unsigned int size)
{
	struct pstore_record record;

	start_record(&record, PSTORE_TYPE_CONSOLE);
	record.buf = (char *)text;
	record.size = size;
	backend->write(&record);
}

static struct console front_console = {
	.name = "fronts",
	.write = console_out,
	.flags = CON_PRINTBUFFER | CON_ENABLED | CON_ANYTIME,
	.index = -1,
};

static ssize_t pmsg_write(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	struct pstore_record record;
	int status;

	start_record(&record, PSTORE_TYPE_PMSG);
	record.size = size;
	status = backend->write_user(&record, text);
	return status < 0 ? status : size;
}

static const struct file_operations pmsg_operations = {
	.owner = THIS_MODULE,
	.write = pmsg_write,
	.llseek = noop_llseek,
};

static struct miscdevice pmsg_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "pmsg0",
	.fops = &pmsg_operations,
};

static const char * const calls[][2] = {
	{ "vfs_write", "ksys_write" },
	{ "vfs_read", "ksys_read" },
	{ "schedule", "schedule_timeout" },
};

static void trace_calls(void *data)
{
	struct pstore_ftrace_record entry;
	struct pstore_record record;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(calls); i++) {
		entry.ip = find(calls[i][0]);
		entry.parent_ip = find(calls[i][1]) + 8;
		pstore_ftrace_write_timestamp(&entry, atomic64_inc_return(&stamp));
		pstore_ftrace_encode_cpu(&entry, raw_smp_processor_id());
		start_record(&record, PSTORE_TYPE_FTRACE);
		record.buf = (void *)&entry;
		record.size = sizeof(entry);
		backend->write(&record);
	}
}

static int __init fronts_init(void)
{
	struct kprobe probe = { .symbol_name = "kallsyms_lookup_name" };
	struct pstore_info **registered;
	int status = register_kprobe(&probe);

	if (status)
		return status;
	find = (void *)probe.addr;
	unregister_kprobe(&probe);
	registered = (void *)find("psinfo");
	if (!registered || !*registered)
		return -ENODEV;
	backend = *registered;
	status = misc_register(&pmsg_device);
	if (status)
		return status;
	register_console(&front_console);
	on_each_cpu(trace_calls, NULL, 1);
	return 0;
}
module_init(fronts_init);

MODULE_DESCRIPTION("A console, messages and a trace for pstore");
MODULE_LICENSE("GPL");
