"""Locks report what lockdep would; SRCU and RCU wait for the right readers."""

import pytest

from kvmarch.errors import ModelError
from kvmarch.machine.locks import Lock, LockClass, Rcu, Srcu
from kvmarch.machine.run import Task, run
from kvmarch.machine.steps import op

OUTER = LockClass("outer", rank=10, sleeps=True)
INNER = LockClass("inner", rank=20, sleeps=True)
SPIN = LockClass("spin", rank=30)
SHARED = LockClass("rw", rank=30, shared=True)
SEMAPHORE = LockClass("rwsem", rank=5, sleeps=True, shared=True)
NESTED = LockClass("nested", rank=20, sleeps=True, nests=True)
SLOTS = LockClass("slots_lock", rank=15, sleeps=True, bars_srcu=True)


async def hold(*scopes):
    for scope in scopes:
        await scope.enter
    for scope in reversed(scopes):
        await scope.leave


def sentences(driver, *scopes):
    driver.do(hold(*scopes))
    assert set(driver.lost) <= {"locks"}
    return [violation.sentence for violation in driver.world.violations]


def test_locks_in_rank_order_are_fine(driver):
    locks = [Lock(driver.world, kind).write() for kind in (OUTER, INNER, SPIN)]

    assert sentences(driver, *locks) == []


def test_wrong_order_is_reported(driver):
    outer, inner = Lock(driver.world, OUTER), Lock(driver.world, INNER)

    assert sentences(driver, inner.write(), outer.write()) == [
        "outer is taken while inner is held"
    ]


def test_two_locks_of_one_class_are_reported(driver):
    one, other = Lock(driver.world, INNER, "one"), Lock(driver.world, INNER, "other")

    assert sentences(driver, one.write(), other.write()) == [
        "other is taken while one is held"
    ]


def test_two_locks_of_a_class_that_nests_are_fine(driver):
    one, other = (Lock(driver.world, NESTED, name) for name in ("one", "other"))

    assert sentences(driver, one.write(), other.write()) == []


def test_a_sleeping_lock_under_a_spinlock_is_reported(driver):
    spin = Lock(driver.world, LockClass("early spin", rank=1))

    assert sentences(driver, spin.write(), Lock(driver.world, OUTER).write()) == [
        "outer may sleep and is taken while early spin is held"
    ]


@pytest.mark.parametrize("mode", ["read", "write"])
def test_a_shared_spinlock_is_atomic_in_both_modes(driver, mode):
    lock = Lock(driver.world, LockClass("rw", rank=1, shared=True))
    scope = lock.read() if mode == "read" else lock.write()

    assert sentences(driver, scope, Lock(driver.world, OUTER).write()) == [
        "outer may sleep and is taken while rw is held"
    ]


def test_atomic_context_ends_with_the_unlock(driver):
    spin = Lock(driver.world, LockClass("early spin", rank=1))
    mutex = Lock(driver.world, OUTER)

    async def one_after_the_other():
        async with spin.write():
            pass
        async with mutex.write():
            pass

    driver.do(one_after_the_other())

    assert driver.lost == []


def test_taking_a_read_lock_twice_is_reported(driver):
    lock = Lock(driver.world, SEMAPHORE)

    assert sentences(driver, lock.read(), lock.read()) == [
        "rwsem is taken twice by main"
    ]


def test_taking_a_lock_twice_waits_for_itself(driver):
    lock = Lock(driver.world, OUTER)

    outcome = driver.race(a=hold(lock.write(), lock.write()))

    assert outcome.end == "stuck"
    assert driver.lost == ["ends"]


def test_a_writer_waits_for_readers_and_they_for_it(driver):
    lock = Lock(driver.world, SHARED)
    reader = driver.actor("reader", hold(lock.read()))
    second = driver.actor("second", hold(lock.read()))
    writer = driver.actor("writer", hold(lock.write()))
    reader.past("read-lock rw")
    second.past("read-lock rw")

    assert lock.readers == ["reader", "second"]
    assert writer.waits() == "lock rw"
    reader.end()
    assert writer.waits() == "lock rw"
    second.end()
    writer.past("lock rw")
    assert lock.writer == "writer"
    assert driver.actor("late", hold(lock.read())).waits() == "read-lock rw"
    writer.end()
    assert (lock.writer, lock.readers) == (None, [])
    assert driver.lost == []


def test_a_lock_without_a_read_mode_has_none(driver):
    with pytest.raises(ModelError, match="outer has no read mode"):
        Lock(driver.world, OUTER).read()


@pytest.mark.parametrize("shared", [False, True], ids=["write", "read"])
def test_unlocking_what_another_holds(driver, shared):
    lock = Lock(driver.world, SHARED)
    driver.actor("owner", hold(lock.write())).past("lock rw")
    step = lock.drop_read() if shared else lock.drop_write()

    with pytest.raises(ModelError, match="thief unlocks rw, which it does not hold"):
        driver.do(step, "thief")


def test_unlocking_in_the_wrong_mode(driver):
    lock = Lock(driver.world, SHARED)

    async def mixed():
        await lock.take_read()
        await lock.drop_write()

    with pytest.raises(ModelError, match="does not hold for write"):
        driver.do(mixed())


def test_locks_may_be_dropped_in_any_order(driver):
    outer, inner = Lock(driver.world, OUTER), Lock(driver.world, INNER)

    async def crossed():
        await outer.take_write()
        await inner.take_write()
        await outer.drop_write()
        await inner.drop_write()

    driver.do(crossed())

    assert driver.lost == []
    assert outer.writer is inner.writer is None


@pytest.mark.parametrize(
    ("held", "needed", "sentence"),
    [
        pytest.param("write", "write", None, id="write-write"),
        pytest.param("write", "read", None, id="write-read"),
        pytest.param("read", "read", None, id="read-read"),
        pytest.param(
            "read",
            "write",
            "f() needs rw for write; it is held only for read",
            id="read-write",
        ),
        pytest.param(
            "", "write", "f() needs rw for write; it is held not at all", id="no-write"
        ),
        pytest.param(
            "", "read", "f() needs rw for read; it is held not at all", id="no-read"
        ),
    ],
)
def test_require_reports_the_wrong_mode(driver, held, needed, sentence):
    lock = Lock(driver.world, SHARED)
    check = op(name="check")(lambda: lock.require(needed, "f()"))

    async def path():
        if held == "write":
            async with lock.write():
                await check()
        elif held == "read":
            async with lock.read():
                await check()
        else:
            await check()

    driver.do(path())

    assert [v.sentence for v in driver.world.violations] == [sentence] * bool(sentence)


def test_the_state_of_a_lock_is_who_holds_it(driver):
    lock = Lock(driver.world, SHARED)
    free = lock.freeze()
    driver.actor("a", hold(lock.read())).past("read-lock rw")

    assert free == (None, ())
    assert lock.freeze() == (None, ("a",))


# -- SRCU --------------------------------------------------------------------------


@pytest.fixture
def srcu(driver):
    return Srcu(driver.world, "kvm->srcu", guards_memslots=True)


def reading(driver, srcu, name):
    return driver.actor(name, hold(srcu.read())).past("srcu_read_lock kvm->srcu")


def test_a_grace_period_without_readers_ends(driver, srcu):
    driver.do(srcu.synchronize())

    assert srcu.idx == 1
    assert driver.lost == []


def test_a_grace_period_waits_for_a_reader_of_the_index_it_flips(driver, srcu):
    reader = reading(driver, srcu, "reader")
    updater = driver.actor("updater", srcu.synchronize())

    assert updater.waits() == "wait for readers of kvm->srcu"
    assert srcu.idx == 1
    reader.end()
    updater.end()


def test_a_grace_period_waits_for_a_reader_of_the_index_flipped_before(driver, srcu):
    early = reading(driver, srcu, "early")
    first = driver.actor("first", srcu.synchronize())
    first.past("flip kvm->srcu")
    late = reading(driver, srcu, "late")

    assert srcu.readers == [["early"], ["late"]]
    early.end()
    first.end()
    second = driver.actor("second", srcu.synchronize())
    assert second.waits() == "wait for readers of kvm->srcu"
    late.end()
    second.end()


def test_a_reader_that_began_after_the_flip_is_not_waited_for(driver, srcu):
    updater = driver.actor("updater", srcu.synchronize()).past("flip kvm->srcu")
    late = reading(driver, srcu, "late")

    updater.end()

    assert not late.task.done
    assert srcu.readers == [[], ["late"]]


def test_two_grace_periods_at_once_both_wait_for_a_reader(driver, srcu):
    reader = reading(driver, srcu, "reader")
    updaters = [driver.actor(name, srcu.synchronize()) for name in ("one", "other")]
    for updater in updaters:
        updater.step()
        updater.step()
    for updater in updaters:
        updater.step()

    assert all(updater.waits() for updater in updaters)
    reader.end()
    while not all(updater.task.done for updater in updaters):
        moved = [updater.step() for updater in updaters]
        assert any(moved)


def test_a_reader_leaves_on_the_index_on_which_it_began(driver, srcu):
    reader = reading(driver, srcu, "reader")
    updater = driver.actor("updater", srcu.synchronize()).past("flip kvm->srcu")

    reader.end()

    assert srcu.readers == [[], []]
    updater.end()


def test_readers_nest(driver, srcu):
    async def nested():
        async with srcu.read():
            async with srcu.read():
                pass
            await op(name="between")(lambda: None)()

    reader = driver.actor("reader", nested())
    reader.to("between")
    updater = driver.actor("updater", srcu.synchronize())

    assert updater.waits()
    reader.end()
    updater.end()


def test_synchronizing_inside_the_own_section_never_ends(driver, srcu):
    async def path():
        async with srcu.read():
            await srcu.synchronize()

    outcome = driver.race(a=path())

    assert outcome.end == "stuck"
    assert driver.lost == ["locks", "ends"]
    assert driver.world.violations[0].sentence == (
        "synchronize of kvm->srcu inside its own read section never ends"
    )


def test_synchronizing_one_domain_inside_another_ends(driver, srcu):
    other = Srcu(driver.world, "kvm->irq_srcu")

    async def path():
        async with other.read():
            await srcu.synchronize()

    driver.do(path())

    assert driver.lost == []


def test_synchronizing_under_a_spinlock_is_reported(driver, srcu):
    lock = Lock(driver.world, SPIN)

    async def path():
        async with lock.write():
            await srcu.synchronize()

    driver.do(path())

    assert [v.sentence for v in driver.world.violations] == [
        "synchronize_srcu kvm->srcu may sleep while spin is held"
    ]


def test_slots_lock_inside_the_srcu_of_memslots_is_reported(driver, srcu):
    lock = Lock(driver.world, SLOTS)

    assert sentences(driver, srcu.read(), lock.write()) == [
        "slots_lock is taken inside kvm->srcu read section"
    ]


def test_slots_lock_inside_another_srcu_is_fine(driver):
    other = Srcu(driver.world, "kvm->irq_srcu")

    assert sentences(driver, other.read(), Lock(driver.world, SLOTS).write()) == []


def test_another_mutex_inside_the_srcu_of_memslots_is_fine(driver, srcu):
    assert sentences(driver, srcu.read(), Lock(driver.world, INNER).write()) == []


def test_leaving_without_being_inside(driver, srcu):
    with pytest.raises(ModelError, match="main leaves kvm->srcu, in which it is no"):
        driver.do(srcu.read().leave)


def test_held_says_whether_the_running_task_reads(driver, srcu):
    answers = []
    ask = op(name="ask")(lambda: answers.append(srcu.held()))
    reading(driver, srcu, "somebody else")

    async def path():
        await ask()
        async with srcu.read():
            await ask()

    driver.do(path())

    assert answers == [False, True]


# -- RCU ---------------------------------------------------------------------------


@pytest.fixture
def rcu(driver):
    return Rcu(driver.world)


def inside(driver, rcu, name):
    return driver.actor(name, hold(rcu.read())).past("rcu_read_lock")


def test_without_readers_a_callback_runs_at_once(rcu):
    ran = []
    rcu.call(lambda: ran.append(1))

    assert ran == [1]


def test_a_callback_runs_when_the_last_reader_of_its_time_leaves(driver, rcu):
    ran = []
    readers = [inside(driver, rcu, name) for name in ("a", "b")]
    rcu.call(lambda: ran.append(1))
    late = inside(driver, rcu, "late")

    readers[0].end()
    assert ran == []
    readers[1].end()
    assert ran == [1]
    assert not late.task.done


def test_a_reader_that_began_later_holds_up_only_later_callbacks(driver, rcu):
    ran = []
    first = inside(driver, rcu, "first")
    rcu.call(lambda: ran.append("one"))
    second = inside(driver, rcu, "second")
    rcu.call(lambda: ran.append("two"))

    first.end()
    assert ran == ["one"]
    second.end()
    assert ran == ["one", "two"]


def test_readers_of_rcu_must_not_sleep(driver, rcu):
    assert sentences(driver, rcu.read(), Lock(driver.world, INNER).write()) == [
        "inner may sleep and is taken while rcu is held"
    ]


def test_readers_of_rcu_nest(driver, rcu):
    ran = []

    async def nested():
        async with rcu.read():
            async with rcu.read():
                pass
            await op(name="between")(lambda: None)()

    reader = driver.actor("reader", nested()).past("rcu_read_lock")
    reader.past("rcu_read_lock")
    rcu.call(lambda: ran.append(1))
    reader.to("between")

    assert ran == []
    reader.end()
    assert ran == [1]
    assert driver.lost == []


def test_schedules_name_the_lock_that_is_waited_for(driver):
    lock = Lock(driver.world, OUTER)
    task = Task("a", lambda: hold(lock.write()))
    driver.actor("owner", hold(lock.write())).past("lock outer")

    outcome = run(driver.world, [task])

    assert outcome.end == "stuck"
    assert (
        driver.world.violations[0].sentence == "no task can move: a waits at lock outer"
    )
