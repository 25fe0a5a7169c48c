"""A custom call among threads that come, come late, or do not come: XLA's side of it is played here."""

import ctypes
import threading
import time
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from ragjax.kernels import machine, sharing
from ragjax.kernels.factors import FLOATS
from ragjax.kernels.machine import vectors
from ragjax.kernels.panels_text import panel_width, panels_text
from ragjax.kernels.stages import Place, Stage, stage_functions

POINTER, LONG = ctypes.c_void_p, ctypes.c_int64
FUNCTION = ctypes.CFUNCTYPE(POINTER, POINTER)
CONTEXT, FUTURE = 77, 4242
STEPS = 16


def struct(**fields):
    return type("Struct", (ctypes.Structure,), {"_fields_": list(fields.items())})


Buffer = struct(size=LONG, extensions=POINTER, type=ctypes.c_int, data=POINTER, rank=LONG, dims=POINTER)
Values = struct(size=LONG, extensions=POINTER, count=LONG, types=POINTER, buffers=POINTER)
Attributes = struct(size=LONG, extensions=POINTER, count=LONG, types=POINTER, names=POINTER, values=POINTER)
Frame = struct(
    size=LONG, extensions=POINTER, api=POINTER, context=POINTER, stage=ctypes.c_int, arguments=Values,
    results=Values, attributes=Attributes, future=POINTER,
)  # fmt: skip
Version = struct(size=LONG, extensions=POINTER, major=ctypes.c_int, minor=ctypes.c_int)
Api = struct(size=LONG, extensions=POINTER, version=Version, internal=POINTER, functions=POINTER * 18)


def compiled(name):
    functions = stage_functions(name, panels_text(FLOATS, vectors()))
    return handled(name, sharing.shared_text([functions]))


def handled(name, text):
    """The handler of a module."""
    return FUNCTION(*machine.compiled(f"{name} shared", text, ["handler"]))


@pytest.fixture(scope="module")
def handler():
    return compiled("ragjax_test_sharing")


@pytest.fixture
def hasty(monkeypatch):
    """Which looks once whether others are done, and whose threads wait for nothing."""
    monkeypatch.setattr(sharing, "_LOOKS", 1)
    return compiled("ragjax_test_haste")


@pytest.fixture
def patient(monkeypatch):
    """Whose threads wait for many seconds."""
    monkeypatch.setattr(sharing, "_LOOKS", 10**9)
    return compiled("ragjax_test_patience")


def seats():
    """What is in each seat."""
    return [longs(sharing._first_seat() + 64 * number, 1)[0] for number in range(sharing._SEATS)]


def until(happens):
    end = time.monotonic() + 20
    while not happens():
        assert time.monotonic() < end
        time.sleep(1e-4)


@pytest.fixture(autouse=True)
def nobody_waits():
    until(lambda: not any(seats()))
    yield
    until(lambda: not any(seats()))


def longs(address, count):
    return (LONG * count).from_address(address)


class Xla:
    """Threads, futures and errors, and what was asked for them."""

    def __init__(self, threads, *, run, refuses=lambda number: False, makes_futures=True):
        self.threads, self.run, self.refuses, self.makes_futures = threads, run, refuses, makes_futures
        self.asked, self.told, self.forgotten, self.tasks = 0, [], [], []
        given = {2: self.forget, 11: self.schedule, 12: self.count, 13: self.make, 14: self.tell}
        self.kept = {place: FUNCTION(function) for place, function in given.items()}
        self.api = Api()
        for place, function in self.kept.items():
            self.api.functions[place] = ctypes.cast(function, POINTER).value

    def forget(self, given):
        self.forgotten.append(longs(given, 3)[2])

    def schedule(self, given):
        self.asked += 1
        if self.refuses(self.asked):
            return 1000 + self.asked
        _, _, context, function, data = longs(given, 5)
        assert context == CONTEXT
        self.tasks.append((function, data))
        if self.run == "at once":
            FUNCTION(function)(data)
        if self.run == "beside":
            thread = threading.Thread(target=lambda: FUNCTION(function)(data), daemon=True)
            thread.start()
            self.tasks[-1] = thread
        return None

    def count(self, given):
        longs(longs(given, 4)[3], 1)[0] = self.threads

    def make(self, given):
        if not self.makes_futures:
            return 2000
        longs(given, 3)[2] = FUTURE
        return None

    def tell(self, given):
        self.told.append(longs(given, 3)[2])


def buffers(*arrays):
    """As a frame holds arrays, each taken to have a shape."""
    made, kept = [], []
    for array, shape in arrays:
        dims = np.array(shape, np.int64)
        made.append(Buffer(48, None, 11, array.ctypes.data, len(shape), dims.ctypes.data))
        kept.append(dims)
    listed = (POINTER * len(made))(*map(ctypes.addressof, made))
    values = Values(40, None, len(made), None, ctypes.addressof(listed))
    values.kept = made, kept, listed
    return values


def called(handler, xla, arguments, results, *, joins=True):
    """The future that a call returned, once those are done that are waited for."""
    frame = Frame(
        api=ctypes.addressof(xla.api), context=CONTEXT, stage=3, arguments=arguments, results=results
    )
    assert handler(ctypes.addressof(frame)) is None
    for task in xla.tasks if xla.run == "beside" and joins else []:
        task.join()
    return frame.future


def call(handler, xla, *, panels=40, rows=3, joins=True):
    """The rows a call wrote, with one behind them, what they should be, and the future it returned."""
    rng = np.random.default_rng(0)
    outputs = max(panels * panel_width(vectors()) - 5, 0)
    x = rng.standard_normal((rows, STEPS)).astype(np.float32)
    weights = rng.standard_normal((panels, STEPS, panel_width(vectors()))).astype(np.float32)
    out = np.full((rows + 1, outputs), np.nan, np.float32)
    future = called(
        handler,
        xla,
        buffers((x, x.shape), (weights, weights.shape)),
        buffers((out, (rows, outputs))),
        joins=joins,
    )
    exact = x @ weights.transpose(1, 0, 2).reshape(STEPS, -1)[:, :outputs]
    return out, exact, future


def right(out, exact):
    assert np.isnan(out[-1]).all()
    np.testing.assert_allclose(out[:-1], exact, atol=1e-4)


@pytest.mark.parametrize(("run", "rows"), [("at once", 3), ("beside", 3), ("beside", 4000)])
@pytest.mark.parametrize("threads", [2, 3, 8, 64])
def test_threads_share_a_call(handler, threads, run, rows):
    for _ in range(10):
        until(lambda: not any(seats()))
        xla = Xla(threads, run=run)
        # With many rows each thread gets to do some of it.
        *found, future = call(handler, xla, rows=rows)
        right(*found)
        # Of 40 panels ten threads have some use.
        assert xla.asked == min(threads, 10) - 1
        assert xla.told == ([] if future is None else [FUTURE])
        assert (future in (None, FUTURE), xla.forgotten) == (True, [])


@pytest.mark.parametrize(("threads", "panels"), [(1, 40), (8, 1), (8, 7), (8, 0)])
def test_a_thread_alone_asks_for_nothing(handler, threads, panels):
    xla = Xla(threads, run="at once")
    *found, future = call(handler, xla, panels=panels, rows=19)
    right(*found)
    assert (future, xla.asked, xla.told) == (None, 0, [])


def test_nobody_waits_for_who_comes_late(handler):
    xla = Xla(4, run="later")
    out, exact, future = call(handler, xla)
    right(out, exact)
    assert (future, xla.told) == (None, [])
    out[:] = -1
    for function, data in xla.tasks:
        FUNCTION(function)(data)
    assert (out == -1).all()
    assert xla.told == []


def test_who_waits_long_is_told(hasty):
    futures = []
    for _ in range(50):
        xla = Xla(2, run="beside")
        *found, future = call(hasty, xla, rows=4000)
        right(*found)
        assert xla.told == ([] if future is None else [future])
        assert future in (None, FUTURE)
        futures.append(future)
    assert FUTURE in futures


def test_who_is_done_takes_part_in_the_next_call_of_any_program(handler, patient):
    first = Xla(sharing._SEATS + 3, run="beside")
    right(*call(patient, first, panels=400, joins=False)[:2])
    # For the others there is no seat.
    until(lambda: sum(task.is_alive() for task in first.tasks) == sharing._SEATS)
    assert seats() == [1] * sharing._SEATS
    for panels in (40, 400):
        until(lambda: 1 in seats())
        second = Xla(2, run="at once")
        right(*call(handler, second, panels=panels, rows=1000)[:2])
        assert second.asked == 0
    until(lambda: seats() == [1] * sharing._SEATS)
    more = Xla(sharing._SEATS + 3, run="at once")
    right(*call(handler, more, panels=400)[:2])
    assert more.asked == 2

    def are_gone():
        # Who was handed many goes.
        call(handler, Xla(sharing._SEATS + 1, run="at once"))
        return not any(task.is_alive() for task in first.tasks)

    until(are_gone)
    alone = Xla(2, run="at once")
    call(handler, alone)
    assert alone.asked == 1


def test_who_was_handed_many_kernels_goes(handler, patient):
    first = Xla(2, run="beside")
    call(patient, first, joins=False)
    for _ in range(sharing._WORKS):
        until(lambda: 1 in seats())
        following = Xla(2, run="at once")
        right(*call(handler, following)[:2])
        assert following.asked == 0
    first.tasks[0].join(1)
    assert not first.tasks[0].is_alive()


READS = """
define { ptr, i64, i64 } @reads(ptr %call) {
  %read = insertvalue { ptr, i64, i64 } zeroinitializer, ptr %call, 0
  ret { ptr, i64, i64 } %read
}
"""


def told_of_pieces(name, pieces, threads, told, reads):
    """A call of so many pieces, for so many threads, each of which is told to a function."""
    functions = stage_functions(name, f"""
%Call = type {{ i64 }}

define {{ i64, i64, i64 }} @plan(ptr %frame, ptr %call) {{
  ret {{ i64, i64, i64 }} {{ i64 {pieces}, i64 {threads}, i64 0 }}
}}

define void @piece(ptr %call, i64 %piece) {{
  call void inttoptr (i64 {ctypes.cast(told, POINTER).value} to ptr)(i64 %piece)
  ret void
}}
{reads}
""")  # fmt: skip
    return handled(name, sharing.shared_text([functions]))


@pytest.mark.parametrize(("reads", "taken"), [(READS, 4), ("", 1)])
def test_of_its_share_a_thread_takes_half_of_what_is_left_where_pieces_are_alike(reads, taken):
    mine, done, xla = threading.get_ident(), Counter(), Xla(2, run="beside")

    @ctypes.CFUNCTYPE(None, LONG)
    def told(number):
        is_mine = threading.get_ident() == mine
        done[number, is_mine] += 1
        if number == 0:  # the other takes what it finds meanwhile
            until(lambda: not any(task.is_alive() for task in xla.tasks))
        if not is_mine:
            until(lambda: done[0, True])

    handler = told_of_pieces(f"ragjax_test_takes_{taken}", 16, 2, told, reads)
    called(handler, xla, buffers(), buffers())
    assert done == {(number, number < taken): 1 for number in range(16)}


@pytest.mark.parametrize(("threads", "taken"), [(2, 4), (4, 2)])
def test_of_the_share_of_who_is_late_each_takes_its_part(threads, taken):
    order, xla = [], Xla(threads, run="later")

    @ctypes.CFUNCTYPE(None, LONG)
    def told(number):
        order.append(number)
        if number == 8:  # the first of another's share, who comes now
            function, data = xla.tasks[0]
            FUNCTION(function)(data)

    handler = told_of_pieces(f"ragjax_test_late_{threads}", 8 * threads, threads, told, READS)
    called(handler, xla, buffers(), buffers())
    assert sorted(order) == [*range(8 * threads)]
    assert order[:10] == [*range(9), 8 + taken]


PANELS, ROWS = 16, 6
FACTOR = PANELS * panel_width(vectors())


@pytest.fixture(scope="module")
def chains():
    """By how often a thread looks before it lets others go first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharing, "_LOOKS", 1)
        hasty = made_chain("ragjax_test_hasty_chain")
    return {1: hasty, sharing._LOOKS: made_chain("ragjax_test_chain")}


@pytest.fixture
def chain(chains):
    return chains[sharing._LOOKS]


def made_chain(name):
    """x times one matrix, that times the next, and so on through four; three products nobody else reads."""
    functions = stage_functions(name, panels_text(FLOATS, vectors()))
    shape, size = (ROWS, FACTOR), 4 * ROWS * FACTOR
    matrix = PANELS, FACTOR, panel_width(vectors())
    places = [
        Place(False, 0, 0, shape), *(Place(True, 1, (at % 2) * size, shape) for at in range(3)),
        Place(True, 0, 0, shape),
    ]  # fmt: skip
    stages = [
        Stage((x, Place(False, 1 + at, 0, matrix)), (out,)) for at, (x, out) in enumerate(pairwise(places))
    ]
    return handled(name, sharing.shared_text([functions] * 4, stages))


def call_chain(chain, xla, *, seed=0):
    """The rows a chain wrote, with one behind them, what they should be, the future, and its matrices."""
    rng = np.random.default_rng(seed)
    x, *matrices = (rng.standard_normal((each, FACTOR)).astype(np.float32) for each in (ROWS, *4 * [FACTOR]))
    exact = x
    for matrix in matrices:
        exact = exact @ matrix
    laid = [np.ascontiguousarray(matrix.reshape(FACTOR, PANELS, -1).swapaxes(0, 1)) for matrix in matrices]
    out = np.full((ROWS + 1, FACTOR), np.nan, np.float32)
    room = np.zeros((2 * ROWS, FACTOR), np.float32)
    arguments = buffers((x, x.shape), *((each, each.shape) for each in laid))
    future = called(chain, xla, arguments, buffers((out, (ROWS, FACTOR)), (room, (room.nbytes,))))
    return out, exact, future, laid


@pytest.mark.parametrize("looks", [1, sharing._LOOKS])
@pytest.mark.parametrize("run", ["at once", "beside", "later"])
@pytest.mark.parametrize("threads", [1, 2, 3, 8, 64])
def test_threads_go_through_all_stages_of_a_call(chains, looks, threads, run):
    chain = chains[looks]
    for seed in range(10):
        until(lambda: not any(seats()))
        xla = Xla(threads, run=run)
        out, exact, future, _ = call_chain(chain, xla, seed=seed)
        np.testing.assert_allclose(out[:-1], exact, rtol=1e-3, atol=1e-3 * np.abs(exact).max())
        assert np.isnan(out[-1]).all()
        # Of 16 panels four threads have some use.
        assert xla.asked == min(threads, 4) - 1
        assert xla.told == ([] if future is None else [FUTURE])
        for function, data in xla.tasks if run == "later" else []:
            FUNCTION(function)(data)


def test_who_is_refused_goes_through_all_stages_itself(chain):
    xla = Xla(2, run="at once", refuses=lambda _: True)
    out, exact, *_ = call_chain(chain, xla)
    np.testing.assert_allclose(out[:-1], exact, rtol=1e-3, atol=1e-3 * np.abs(exact).max())


def noted():
    """What the notes say is read after an array: the first byte, bytes of a part, parts, threads."""
    count = 1 << sharing._HASH_BITS
    all_of_them = np.array(longs(sharing._line_of(sharing._NOTES), 4 * (count + 1))).reshape(-1, 4)[1:]

    def after(array):
        place = ((array.ctypes.data >> 6) * sharing._GOLDEN) % (1 << 64) >> (64 - sharing._HASH_BITS)
        return list(all_of_them[place])

    return after


def test_a_call_notes_for_the_one_before_what_it_reads(chain):
    *_, first = call_chain(chain, Xla(3, run="at once"))
    *_, second = call_chain(chain, Xla(2, run="at once"))
    *_, third = call_chain(chain, Xla(2, run="at once"))
    part = 4 * FACTOR * panel_width(vectors())
    # Of a call that has several stages, what the first reads.
    assert noted()(first[0]) == [second[0].ctypes.data, part, PANELS, 2]
    assert noted()(second[0]) == [third[0].ctypes.data, part, PANELS, 2]


PREPARATIONS, PIECES = 37, 64
PREPARED = f"""
%Call = type {{ ptr, ptr }}                                           ; out, how often each was made

define {{ i64, i64, i64 }} @plan(ptr %frame, ptr %call) {{
  %buffer = call ptr @result(ptr %frame, i64 0)
  %out = call ptr @data(ptr %buffer)
  store ptr %out, ptr %call
  %made.buffer = call ptr @result(ptr %frame, i64 1)
  %made = call ptr @data(ptr %made.buffer)
  %made.at = getelementptr %Call, ptr %call, i32 0, i32 1
  store ptr %made, ptr %made.at
  ret {{ i64, i64, i64 }} {{ i64 {PIECES}, i64 {PIECES}, i64 {8 * PREPARATIONS} }}
}}

define i64 @prepare(ptr %call, ptr %room) {{
  ret i64 {PREPARATIONS}
}}

define i64 @add(ptr %to, i64 %value) {{
  %before = load i64, ptr %to
  %after = add i64 %before, %value
  store i64 %after, ptr %to
  ret i64 %after
}}

; Takes its time, so that others come.
define ptr @preparation(ptr %call, i64 %which, ptr %ahead) {{
entry:
  %room.at = getelementptr %Call, ptr %call, i32 0, i32 1
  %room = load ptr, ptr %room.at
  %to = getelementptr i64, ptr %room, i64 %which
  br label %wait

wait:
  %left = phi i64 [ 20000, %entry ], [ %left.next, %wait ]
  %seen = load volatile i64, ptr %to
  %left.next = sub i64 %left, 1
  %is.over = icmp eq i64 %left.next, 0
  br i1 %is.over, label %make, label %wait

make:
  %made = call i64 @add(ptr %to, i64 1)
  ret ptr %ahead
}}

; Counts at its place the preparations that were made once.
define void @piece(ptr %call, i64 %piece) {{
entry:
  %out = load ptr, ptr %call
  %to = getelementptr i64, ptr %out, i64 %piece
  %room.at = getelementptr %Call, ptr %call, i32 0, i32 1
  %room = load ptr, ptr %room.at
  br label %one

one:
  %which = phi i64 [ 0, %entry ], [ %which.next, %one ]
  %from = getelementptr i64, ptr %room, i64 %which
  %made = load i64, ptr %from
  %is.once = icmp eq i64 %made, 1
  %value = zext i1 %is.once to i64
  %sum = call i64 @add(ptr %to, i64 %value)
  %which.next = add i64 %which, 1
  %more = icmp ult i64 %which.next, {PREPARATIONS}
  br i1 %more, label %one, label %end

end:
  ret void
}}
"""


@pytest.fixture(scope="module")
def memory():
    """What `preparing` has taken of memory and not given back."""
    return set()


@pytest.fixture(scope="module")
def preparing(memory):
    import llvmlite.binding as llvm

    kept = []

    def malloc(size):
        kept.append(ctypes.create_string_buffer(size))
        memory.add(ctypes.addressof(kept[-1]))
        return ctypes.addressof(kept[-1])

    given = ctypes.CFUNCTYPE(POINTER, LONG)(malloc), ctypes.CFUNCTYPE(None, POINTER)(memory.remove)
    for name, function in zip(("malloc", "free"), given, strict=True):
        llvm.add_symbol(f"ragjax_test_{name}", ctypes.cast(function, POINTER).value)
    functions = stage_functions("ragjax_test_preparations", PREPARED)
    # Two stages one after the other.
    stages = [
        Stage((), (Place(True, number, 0, (PIECES,)), Place(True, 2 + number, 0, (PREPARATIONS,))))
        for number in range(2)
    ]
    text = sharing.shared_text([functions] * 2, stages)
    text = text.replace("@malloc", "@ragjax_test_malloc").replace("@free", "@ragjax_test_free")
    yield handled("ragjax_test_preparations", text)
    del given, kept


@pytest.mark.parametrize("run", ["at once", "beside", "later"])
@pytest.mark.parametrize("threads", [1, 2, 3, 50])
def test_preparations_are_shared_and_made_once_before_any_piece(preparing, memory, threads, run):
    for _ in range(20):
        xla = Xla(threads, run=run)
        out, made = np.zeros((2, PIECES), np.int64), np.zeros((2, PREPARATIONS), np.int64)
        called(preparing, xla, buffers(), buffers(*((each, each.shape) for each in (*out, *made))))
        np.testing.assert_array_equal(out, PREPARATIONS)
        for function, data in xla.tasks if run == "later" else []:
            FUNCTION(function)(data)
        np.testing.assert_array_equal(out, PREPARATIONS)
        np.testing.assert_array_equal(made, 1)
        until(lambda: not memory)


@pytest.mark.parametrize("refuses", [lambda _: True, lambda number: number == 2])
@pytest.mark.parametrize("run", ["at once", "later", "beside"])
def test_who_is_refused_works_itself(handler, run, refuses):
    xla = Xla(4, run=run, refuses=refuses)
    *found, future = call(handler, xla)
    right(*found)
    assert xla.told == ([] if future is None else [FUTURE])
    assert xla.forgotten == [1000 + number for number in (1, 2, 3) if refuses(number)]
    for function, data in xla.tasks if run == "later" else []:
        FUNCTION(function)(data)


def test_without_a_future_one_looks_on(hasty):
    failed = 0
    for _ in range(50):
        xla = Xla(2, run="beside", makes_futures=False)
        *found, future = call(hasty, xla, rows=4000)
        right(*found)
        assert (future, xla.told) == (None, [])
        assert set(xla.forgotten) <= {2000}
        failed += len(xla.forgotten)
    assert failed
