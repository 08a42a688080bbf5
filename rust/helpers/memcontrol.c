// SPDX-License-Identifier: GPL-2.0

#include <linux/memcontrol.h>
#include <linux/sched/mm.h>

/* There is no mem_cgroup_get() in C, only its counterpart. */
__rust_helper void rust_helper_mem_cgroup_get(struct mem_cgroup *memcg)
{
#ifdef CONFIG_MEMCG
	css_get(&memcg->css);
#endif
}

__rust_helper bool rust_helper_mem_cgroup_tryget(struct mem_cgroup *memcg)
{
	return mem_cgroup_tryget(memcg);
}

__rust_helper void rust_helper_mem_cgroup_put(struct mem_cgroup *memcg)
{
	mem_cgroup_put(memcg);
}

__rust_helper u64 rust_helper_mem_cgroup_id(struct mem_cgroup *memcg)
{
	return mem_cgroup_id(memcg);
}

__rust_helper struct mem_cgroup *rust_helper_page_memcg_check(struct page *page)
{
	return page_memcg_check(page);
}

__rust_helper struct mem_cgroup *
rust_helper_set_active_memcg(struct mem_cgroup *memcg)
{
	return set_active_memcg(memcg);
}

#ifndef CONFIG_MEMCG
__rust_helper struct mem_cgroup *
rust_helper_get_mem_cgroup_from_mm(struct mm_struct *mm)
{
	return get_mem_cgroup_from_mm(mm);
}
#endif
