/*
 * A gfn_to_pfn_cache in use by N vCPUs while the host drops its page: the protocol of
 * scenarios/gpc_Nvcpu.toml, step by step. A lock is one atomic step, as is each access
 * to what is shared; what a step only does for itself is part of the step before.
 *
 * Pages are numbered from 1; 0 is none. -DPROGRESS has the retry check look at the
 * count that page faults look at, which rises too late (gpc-retry-in-progress).
 */
#ifndef N
#define N 2
#endif
#define PAGES 3
#ifdef PROGRESS
#define PENDING in_progress
#else
#define PENDING active_count
#endif

#define TAKE(lock)  atomic { !lock -> lock = true }
#define DROP(lock)  lock = false

byte mmap_readers, notifier_readers, srcu_readers;
bool mn_invalidate_lock, gpc_lock, refresh_lock, mmu_lock, ptl;
bool cache_writer;
byte cache_readers;

byte active_count, in_progress, seq;
byte pte = 1, next_page = 2;
byte refs[PAGES];
bool freed[PAGES];

bool valid = true;
byte page = 1, mapping = 1, turns;

bool opened, returned;
byte old;

inline put(which)
{
	atomic {
		assert(refs[which] > 0);
		refs[which]--;
		if
		:: refs[which] == 0 -> freed[which] = true
		:: else
		fi
	}
}

proctype host()
{
	bool hit;
	byte gone;

	mmap_readers++;
	atomic { opened = true; old = pte };
	notifier_readers++;
	skip;				/* read the list of notifiers */
	TAKE(mn_invalidate_lock);
	active_count++;
	DROP(mn_invalidate_lock);

	TAKE(gpc_lock);
	skip;				/* read the list of caches */
	atomic { !cache_writer -> cache_readers++ };
	hit = valid && page != 0;
	cache_readers--;
	if
	:: hit ->
		atomic { !cache_writer && cache_readers == 0 -> cache_writer = true };
		valid = false;
		DROP(cache_writer)
	:: else
	fi;
	DROP(gpc_lock);

	srcu_readers++;
	skip;				/* trace point */
	skip;				/* look up memslots */
	TAKE(mmu_lock);
	in_progress++;
	skip;				/* remember the range */
	skip;				/* zap: the guest has mapped nothing */
	DROP(mmu_lock);
	srcu_readers--;
	notifier_readers--;
	returned = true;

	TAKE(ptl);
	atomic { gone = pte; pte = 0 };
	DROP(ptl);

	notifier_readers++;
	returned = false;		/* and the list of notifiers is read */
	skip;				/* look up memslots */
	TAKE(mmu_lock);
	atomic { seq++; in_progress-- };
	DROP(mmu_lock);
	TAKE(mn_invalidate_lock);
	active_count--;
	DROP(mn_invalidate_lock);
	notifier_readers--;
	atomic { opened = false; old = 0 };
	if
	:: gone != 0 -> put(gone)
	:: else
	fi;
	mmap_readers--
}

proctype vcpu()
{
	bool usable, was_valid;
	byte found, snapshot;

	srcu_readers++;
	atomic { !cache_writer -> cache_readers++ };
	usable = valid;
	do
	:: usable -> break
	:: else ->
		cache_readers--;
		skip;			/* does the access fit? */
		skip;			/* read the addresses */
		TAKE(refresh_lock);
		atomic { !cache_writer && cache_readers == 0 -> cache_writer = true };
		was_valid = valid;
		skip;			/* look up the address */
		if
		:: was_valid -> mapping = page
		:: else ->
			valid = false;
			found = 0;
			do
			:: atomic {
				snapshot = seq;
				turns = (turns < 3 -> turns + 1 : 3)
			   };
			   DROP(cache_writer);
			   if
			   :: found != 0 -> put(found)
			   :: else
			   fi;
			   do
			   :: atomic {
				found = pte;
				if
				:: found != 0 -> refs[found]++
				:: else
				fi
			      };
			      if
			      :: found != 0 -> break
			      :: else ->
				mmap_readers++;
				atomic { !ptl ->	/* host fault */
					if
					:: pte == 0 ->
						assert(next_page < PAGES);
						pte = next_page;
						refs[next_page] = 1;
						next_page++
					:: else
					fi
				};
				mmap_readers--
			      fi
			   od;
			   atomic {
				!cache_writer && cache_readers == 0 ->
				cache_writer = true
			   };
			   if		/* has an invalidation raced? */
			   :: PENDING > 0 || seq != snapshot
			   :: else -> break
			   fi
			od;
			atomic {
				valid = true; page = found; mapping = found;
				turns = 0
			};
			put(found);
			found = 0
		fi;
		DROP(cache_writer);
		DROP(refresh_lock);
		atomic { !cache_writer -> cache_readers++ };
		usable = valid
	od;
	atomic {			/* write through the mapping */
		assert(mapping != 0 && !freed[mapping]);
		assert(!(returned && mapping == old))
	};
	skip;				/* mark the page dirty */
	cache_readers--;
	srcu_readers--
}

init {
	byte i;

	atomic {
		refs[1] = 1;
		run host();
		i = 0;
		do
		:: i < N -> run vcpu(); i++
		:: else -> break
		od
	}
}
