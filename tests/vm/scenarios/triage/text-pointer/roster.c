// SPDX-License-Identifier: GPL-2.0
/* A name that is longer than its field runs into the pointer behind it. */
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/slab.h>

struct roster_team {
	u32 size;
	u32 wins;
};

struct roster_player {
	u32 number;
	char name[20];
	struct roster_team *team;
	struct roster_player *next;
};

static struct roster_player *roster_first;
static struct roster_team roster_team;

static noinline void roster_rename(struct roster_player *player, const char *name)
{
	char *to = player->name;

	while ((*to++ = *name++))
		barrier();
}

static noinline u32 roster_wins(struct roster_player *player)
{
	return player->team->wins;
}

static noinline u32 roster_total(void)
{
	struct roster_player *player;
	u32 sum = 0;

	for (player = roster_first; player; player = player->next)
		sum += roster_wins(player);
	return sum;
}

static ssize_t roster_write(struct file *file, const char __user *text, size_t size, loff_t *at)
{
	char verb = 0;

	if (get_user(verb, text))
		return -EFAULT;
	if (verb == 'n')
		roster_rename(roster_first->next, "Bartholomew Featherstonehaugh");
	else if (!roster_total())
		return -EIO;
	return size;
}

static const struct proc_ops roster_ops = { .proc_write = roster_write };

static int __init roster_init(void)
{
	int i;

	for (i = 0; i < 4; i++) {
		struct roster_player *player = kzalloc(sizeof(*player), GFP_KERNEL);

		player->number = i;
		player->team = &roster_team;
		player->next = roster_first;
		roster_first = player;
	}
	roster_team.wins = 3;
	proc_create("roster", 0200, NULL, &roster_ops);
	return 0;
}
module_init(roster_init);
MODULE_DESCRIPTION("Players and teams");
MODULE_LICENSE("GPL");
