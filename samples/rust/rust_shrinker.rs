// SPDX-License-Identifier: GPL-2.0

//! Shrinker sample: a cache that gives its objects back when memory is short.
//!
//! Each object is charged to the memory cgroup of the task that added it, and lies on some NUMA
//! node. When either is short of memory, the shrinker frees objects of that cgroup and node.
//!
//! The cache is used by way of `/sys/kernel/debug/rust_shrinker/`:
//!
//! | File | |
//! |---|---|
//! | `add`, `del` | write how many objects are to be added, or removed, oldest first |
//! | `objects` | how many there are |
//! | `busy` | `true`: nothing can be told about the objects now, and the shrinker says so |
//! | `held` | `true`: all objects are in use, so the shrinker looks at them and frees none |
//! | `cost` | how much looking at one object counts |
//! | `counts`, `scans` | how often the shrinker was called |
//! | `scanned`, `freed` | how many objects it counted as looked at, and freed |

use core::{cmp::min, ops::Range};
use kernel::{
    debugfs::{
        Reader,
        Scope, //
    },
    list_lru::{
        impl_has_lru_entry,
        new_list_lru,
        ArcDisposeList,
        ArcListLru,
        LruEntry, //
    },
    new_mutex,
    prelude::*,
    shrinker::{
        Count,
        Flag,
        Options,
        Registration,
        Scan,
        ShrinkControl,
        Shrinker,
        UnregisteredShrinker, //
    },
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        ArcBorrow,
        Mutex, //
    },
    uaccess::UserSliceReader,
    xarray::{
        AllocKind,
        XArray, //
    }, //
};
use pin_init::stack_pin_init;

module! {
    type: RustShrinker,
    name: "rust_shrinker",
    authors: ["Rust for Linux Contributors"],
    description: "Rust shrinker sample",
    license: "GPL",
}

/// What is cached.
#[pin_data]
struct Object {
    key: usize,
    #[pin]
    entry: LruEntry,
}

impl_has_lru_entry! {
    impl HasLruEntry for Object { self.entry }
}

/// The cache: an index by which objects are found, and an LRU by which they are freed. Each has a
/// reference to every object.
#[pin_data]
struct Cache {
    /// The keys of the objects, except that the shrinker may have freed some.
    ///
    /// Memory is allocated with this mutex held, and that may call the shrinker, by the same task
    /// or by one that it waits for. So the callbacks must not take it.
    #[pin]
    keys: Mutex<Range<usize>>,
    #[pin]
    index: XArray<Arc<Object>>,
    #[pin]
    lru: ArcListLru<Object>,
    objects: Atomic<usize>,
    busy: Atomic<bool>,
    held: Atomic<bool>,
    cost: Atomic<u32>,
    counts: Atomic<usize>,
    scans: Atomic<usize>,
    scanned: Atomic<usize>,
    freed: Atomic<usize>,
}

impl Cache {
    fn new(shrinker: &UnregisteredShrinker) -> impl PinInit<Self, Error> + use<'_> {
        try_pin_init!(Self {
            keys <- new_mutex!(0..0),
            index <- XArray::new(AllocKind::Alloc),
            lru <- ArcListLru::new(new_list_lru!(shrinker)),
            objects: Atomic::new(0),
            busy: Atomic::new(false),
            held: Atomic::new(false),
            cost: Atomic::new(1),
            counts: Atomic::new(0),
            scans: Atomic::new(0),
            scanned: Atomic::new(0),
            freed: Atomic::new(0),
        })
    }

    /// Adds an object, for which the current task pays.
    fn add(&self) -> Result {
        let mut keys = self.keys.lock();
        let key = keys.end;
        let object = Arc::pin_init(
            pin_init!(Object { key, entry <- LruEntry::new() }),
            GFP_KERNEL_ACCOUNT,
        )?;

        self.index.lock().store(key, object.clone(), GFP_KERNEL)?;
        self.objects.fetch_add(1, Relaxed);
        if let Err(err) = self.lru.add(&object, GFP_KERNEL) {
            self.forget(key);
            return Err(err);
        }
        keys.end += 1;
        Ok(())
    }

    /// Removes the oldest object.
    fn del(&self) -> Result {
        let mut keys = self.keys.lock();
        let object = keys.find_map(|key| self.forget(key)).ok_or(ENOENT)?;

        // If that finds nothing, then the shrinker is just about to drop its reference.
        self.lru.del(&object);
        Ok(())
    }

    /// Takes an object out of the index.
    fn forget(&self, key: usize) -> Option<Arc<Object>> {
        let object = self.index.lock().remove(key)?;
        self.objects.fetch_sub(1, Relaxed);
        Some(object)
    }

    /// Does something as often as userspace writes. If it fails, what has been done before stays.
    fn repeat(reader: &mut UserSliceReader, mut what: impl FnMut() -> Result) -> Result {
        let n = Atomic::<usize>::new(0);
        n.read_from_slice(reader)?;

        (0..n.load(Relaxed)).try_for_each(|_| {
            if kernel::current!().signal_pending() {
                return Err(EINTR);
            }
            what()
        })
    }

    /// Makes the cache visible in debugfs for as long as the value returned exists.
    fn show(self: Arc<Self>) -> impl PinInit<Scope<Arc<Self>>> {
        Scope::dir(self, c"rust_shrinker", |cache: &Arc<Self>, dir| {
            dir.write_only_callback_file(c"add", cache, &|cache: &Arc<Self>, reader| {
                Self::repeat(reader, || cache.add())
            });
            dir.write_only_callback_file(c"del", cache, &|cache: &Arc<Self>, reader| {
                Self::repeat(reader, || cache.del())
            });
            dir.read_write_file(c"busy", &cache.busy);
            dir.read_write_file(c"held", &cache.held);
            dir.read_write_file(c"cost", &cache.cost);
            dir.read_only_file(c"objects", &cache.objects);
            dir.read_only_file(c"counts", &cache.counts);
            dir.read_only_file(c"scans", &cache.scans);
            dir.read_only_file(c"scanned", &cache.scanned);
            dir.read_only_file(c"freed", &cache.freed);
        })
    }
}

#[vtable]
impl Shrinker for Cache {
    type Context = Arc<Cache>;

    fn count_callback(cache: ArcBorrow<'_, Cache>, sc: &ShrinkControl) -> Count {
        cache.counts.fetch_add(1, Relaxed);
        if cache.busy.load(Relaxed) {
            return Count::NOT_NOW;
        }
        Count::from_items(cache.lru.count(sc))
    }

    fn scan_callback(cache: ArcBorrow<'_, Cache>, sc: &mut ShrinkControl) -> Scan {
        cache.scans.fetch_add(1, Relaxed);
        if cache.busy.load(Relaxed) {
            return Scan::STOP;
        }

        stack_pin_init!(let dispose = ArcDisposeList::new());
        let held = cache.held.load(Relaxed);
        // Debugfs may ask for any number, and what is rotated would be met again.
        let wanted = min(sc.nr_to_scan(), cache.lru.count(sc));
        let mut left = wanted;
        cache.lru.walk(sc, &mut left, |cursor| {
            if held {
                cursor.rotate()
            } else {
                cursor.remove_to(dispose.as_mut())
            }
        });

        // Nothing is locked now. An object that is not in the index has just been removed.
        let mut freed = 0;
        while let Some(object) = dispose.as_mut().pop() {
            freed += usize::from(cache.forget(object.key).is_some());
        }
        cache.freed.fetch_add(freed, Relaxed);

        let scanned = (wanted - left).saturating_mul(cache.cost.load(Relaxed) as usize);
        cache.scanned.fetch_add(scanned, Relaxed);
        sc.set_nr_scanned(scanned);
        if scanned == 0 {
            // The list is empty by now. Don't ask again, as it would go on for ever.
            return Scan::STOP;
        }
        Scan::freed(freed)
    }
}

/// The module. Its fields are dropped in the order in which they are declared: first nobody can use
/// the cache any more, and then the shrinker is gone, and the cache with it.
#[pin_data]
struct RustShrinker {
    #[pin]
    _files: Scope<Arc<Cache>>,
    _shrinker: Registration<Cache>,
}

impl kernel::InPlaceModule for RustShrinker {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        pin_init::pin_init_scope(|| {
            let options = Options {
                flags: Flag::MemcgAware | Flag::NumaAware,
                ..Options::default()
            };
            let shrinker = UnregisteredShrinker::alloc(fmt!("rust_shrinker"), options)?;
            let cache = Arc::pin_init(Cache::new(&shrinker), GFP_KERNEL)?;

            Ok(try_pin_init!(Self {
                _files <- cache.clone().show(),
                _shrinker: shrinker.register(cache),
            }))
        })
    }
}
