// SPDX-License-Identifier: GPL-2.0
/* Keeps letters in memory: text from the first byte to the last. */
#include <linux/module.h>
#include <linux/slab.h>

#define LETTERS 400
static char *mailbox_letters[LETTERS];

static int __init mailbox_init(void)
{
	static const char sentence[] = "Dear all, the meeting of Thursday begins at nine. ";
	int i, k;

	for (i = 0; i < LETTERS; i++) {
		char *letter = kmalloc(160, GFP_KERNEL);

		for (k = 0; k < 160; k++)
			letter[k] = sentence[k % (sizeof(sentence) - 1)];
		mailbox_letters[i] = letter;
	}
	return 0;
}
module_init(mailbox_init);
MODULE_DESCRIPTION("Letters");
MODULE_LICENSE("GPL");
