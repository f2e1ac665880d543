/*
 * N vCPUs fault on a gfn without a memslot while user space puts one there: the
 * protocol of scenarios/generation_Nvcpu.toml, step by step. A lock is one atomic
 * step, as is each access to what is shared.
 *
 * An MMIO entry, or a vCPU's cache of one, remembers the generation of the memslots
 * at which there was no slot. Nothing is remembered as current during an update.
 * -DONCE has one step of the generation, with the new set (without generation-twice).
 */
#ifndef N
#define N 2
#endif

#define TAKE(lock)  atomic { !lock -> lock = true }
#define DROP(lock)  lock = false

#define NONE	0			/* kinds of an entry */
#define PAGE	1
#define MMIO(g)	(8 + (g))		/* remembers a generation */

bool slots_lock, slots_arch_lock, mn_invalidate_lock;
byte mmu_readers, rcu_readers;
byte srcu_idx, srcu_readers[2];
bool synchronizing;

byte generation = 1;
bool updating, slot, returned;
byte entry, refs = 1;

bool tlb[N];
byte cached[N];				/* the generation; 0 for none */

proctype vmm()
{
	byte next;

	TAKE(slots_lock);
	TAKE(slots_arch_lock);
	next = generation + 1;		/* and the new set is made */
	skip;				/* no invalidation is active */
	TAKE(mn_invalidate_lock);
#ifdef ONCE
	atomic { slot = true; generation = next };
#else
	atomic { slot = true; updating = true };
#endif
	DROP(mn_invalidate_lock);
	DROP(slots_arch_lock);
	atomic { !synchronizing -> synchronizing = true };
	srcu_readers[1 - srcu_idx] == 0;
	srcu_idx = 1 - srcu_idx;
	atomic { srcu_readers[1 - srcu_idx] == 0 -> synchronizing = false };
	atomic { generation = next; updating = false };
	returned = true;
	DROP(slots_lock)
}

/*
 * What only a vCPU itself touches (its mutex, its mode, its cache) takes no step of
 * its own, and neither does a decision about what it has just read.
 */
proctype vcpu(byte me)
{
	bool settled, has_slot, again;
	byte idx, faults, before, new;

access:
	atomic {			/* the access, and a walk if it must be */
		faults <= 1 || !updating ->	/* the third time, give way */
		if
		:: faults <= 1 -> faults++
		:: else
		fi;
		if
		:: tlb[me] || entry == PAGE -> tlb[me] = true; goto done
		:: else -> settled = returned; before = entry; again = false
		fi
	};
	atomic { idx = srcu_idx; srcu_readers[idx]++ };
	if
	:: atomic { before != NONE ->	/* is the gfn in the vCPU's cache? */
		if
		:: !updating && cached[me] == generation -> goto emulate
		:: else
		fi
	   };
	   atomic {			/* is the entry of this generation? */
		if
		:: entry == NONE || entry == PAGE -> again = true; goto leave
		:: !updating && entry == MMIO(generation) ->
			cached[me] = generation;
			goto emulate
		:: else
		fi
	   }
	:: before == NONE
	fi;
	has_slot = slot;
	if
	:: has_slot -> refs++
	:: !has_slot ->
		atomic {
			if
			:: !updating -> cached[me] = generation
			:: else
			fi
		}
	fi;
	mmu_readers++;
	atomic {			/* walk */
		before = entry;
		new = (has_slot -> PAGE : MMIO(generation));
		if
		:: before == new -> goto unlock
		:: else -> rcu_readers++
		fi
	};
	atomic {			/* cmpxchg */
		if
		:: entry == before -> entry = new
		:: else -> again = true
		fi;
		rcu_readers--
	};
unlock:
	mmu_readers--;
	if
	:: has_slot -> atomic { refs--; again = true }; goto leave
	:: !has_slot && again -> goto leave
	:: else
	fi;
emulate:
	assert(!settled);		/* what was there to stay is no MMIO */
leave:
	atomic {
		srcu_readers[idx]--;
		before = 0; new = 0; has_slot = false; settled = false; idx = 0;
		if
		:: again -> goto access
		:: else
		fi
	};
done:
	skip				/* leave the guest */
}

init {
	byte i;

	atomic {
		run vmm();
		i = 0;
		do
		:: i < N -> run vcpu(i); i++
		:: else -> break
		od
	}
}
