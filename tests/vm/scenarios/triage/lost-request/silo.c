// SPDX-License-Identifier: GPL-2.0
/* A disk in memory that stops answering once it is told to. */
#include <linux/blk-mq.h>
#include <linux/blkdev.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/version.h>
#include <linux/vmalloc.h>

#define SILO_BYTES (16UL << 20)
static struct blk_mq_tag_set silo_tags;
static struct gendisk *silo_disk;
static char *silo_grain;
static bool silo_closed;

static noinline blk_status_t silo_move(struct request *request)
{
	struct req_iterator at;
	struct bio_vec part;
	loff_t place = blk_rq_pos(request) << SECTOR_SHIFT;

	rq_for_each_segment(part, request, at) {
		void *page = page_address(part.bv_page) + part.bv_offset;

		if (rq_data_dir(request) == WRITE)
			memcpy(silo_grain + place, page, part.bv_len);
		else
			memcpy(page, silo_grain + place, part.bv_len);
		place += part.bv_len;
	}
	return BLK_STS_OK;
}

static blk_status_t silo_queue(struct blk_mq_hw_ctx *context, const struct blk_mq_queue_data *data)
{
	blk_mq_start_request(data->rq);
	if (READ_ONCE(silo_closed))
		return BLK_STS_OK;
	blk_mq_end_request(data->rq, silo_move(data->rq));
	return BLK_STS_OK;
}

static enum blk_eh_timer_return silo_late(struct request *request)
{
	return BLK_EH_RESET_TIMER;
}

static const struct blk_mq_ops silo_mq_ops = { .queue_rq = silo_queue, .timeout = silo_late };
static const struct block_device_operations silo_disk_ops = { .owner = THIS_MODULE };

static ssize_t silo_write(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	silo_closed = true;
	return size;
}

static const struct proc_ops silo_ops = { .proc_write = silo_write };

static int __init silo_init(void)
{
	int error;

	silo_grain = vzalloc(SILO_BYTES);
	silo_tags.ops = &silo_mq_ops;
	silo_tags.nr_hw_queues = 1;
	silo_tags.queue_depth = 32;
	silo_tags.numa_node = NUMA_NO_NODE;
#ifdef BLK_MQ_F_SHOULD_MERGE
	silo_tags.flags = BLK_MQ_F_SHOULD_MERGE;
#endif
	error = blk_mq_alloc_tag_set(&silo_tags);
	if (error)
		return error;
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 9, 0)
	silo_disk = blk_mq_alloc_disk(&silo_tags, NULL, NULL);
#else
	silo_disk = blk_mq_alloc_disk(&silo_tags, NULL);
#endif
	if (IS_ERR(silo_disk))
		return PTR_ERR(silo_disk);
	silo_disk->fops = &silo_disk_ops;
	strscpy(silo_disk->disk_name, "silo0", sizeof(silo_disk->disk_name));
	set_capacity(silo_disk, SILO_BYTES >> SECTOR_SHIFT);
	proc_create("silo", 0200, NULL, &silo_ops);
	return add_disk(silo_disk);
}
module_init(silo_init);
MODULE_DESCRIPTION("A disk in memory");
MODULE_LICENSE("GPL");
