// SPDX-License-Identifier: GPL-2.0

#include <linux/list_lru.h>
#include <linux/nodemask.h>

/* Unlike the C macro, any number may be asked about. */
__rust_helper bool rust_helper_node_possible(int nid)
{
	return nid >= 0 && nid < MAX_NUMNODES && node_possible(nid);
}

__rust_helper void rust_helper_list_del_init(struct list_head *entry)
{
	list_del_init(entry);
}

#ifndef CONFIG_MEMCG
__rust_helper int
rust_helper_folio_memcg_list_lru_alloc(struct folio *folio,
				       struct list_lru *lru, gfp_t gfp)
{
	return folio_memcg_list_lru_alloc(folio, lru, gfp);
}
#endif
