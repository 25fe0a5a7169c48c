; A custom call of XLA's whose stages its threads share out among themselves.

declare ptr @malloc(i64)
declare void @free(ptr)

; Called once when it is registered, to say which version it speaks, and then at every call.
define ptr @handler(ptr %frame) {
entry:
  %extension.at = getelementptr %Frame, ptr %frame, i32 0, i32 1
  %extension = load ptr, ptr %extension.at
  %is.there = icmp ne ptr %extension, null
  br i1 %is.there, label %look, label %execute

look:
  %kind.at = getelementptr %Extension, ptr %extension, i32 0, i32 1
  %kind = load i32, ptr %kind.at
  %is.asked = icmp eq i32 %kind, 1
  br i1 %is.asked, label %describe, label %execute

describe:
  %metadata.at = getelementptr %Extension, ptr %extension, i32 0, i32 3
  %metadata = load ptr, ptr %metadata.at
  %major.at = getelementptr %Metadata, ptr %metadata, i32 0, i32 1, i32 2
  store i32 0, ptr %major.at
  %minor.at = getelementptr %Metadata, ptr %metadata, i32 0, i32 1, i32 3
  store i32 $minor, ptr %minor.at
  ret ptr null

execute:
  %api.at = getelementptr %Frame, ptr %frame, i32 0, i32 2
  %api = load ptr, ptr %api.at
  %context.at = getelementptr %Frame, ptr %frame, i32 0, i32 3
  %context = load ptr, ptr %context.at
  %planned = alloca [$stage_count x %Part]
  br label %plan

plan:
  %stage = phi i64 [ 0, %execute ], [ %stage.next, %plan ]
  %useful = phi i64 [ 1, %execute ], [ %useful.next, %plan ]
  %room.bytes = phi i64 [ 0, %execute ], [ %room.next, %plan ]
  %stage.at = getelementptr %Stage, ptr @stages, i64 %stage
  %planned.at = getelementptr %Part, ptr %planned, i64 %stage
  %wanted = call { i64, i64 } @plan.stage(ptr %frame, ptr %stage.at, ptr %planned.at)
  %wanted.threads = extractvalue { i64, i64 } %wanted, 0
  %wanted.bytes = extractvalue { i64, i64 } %wanted, 1
  %useful.next = call i64 @llvm.umax.i64(i64 %useful, i64 %wanted.threads)
  %room.next = call i64 @llvm.umax.i64(i64 %room.bytes, i64 %wanted.bytes)
  %stage.next = add i64 %stage, 1
  %plan.more = icmp ult i64 %stage.next, $stage_count
  br i1 %plan.more, label %plan, label %gather

gather:
  %count = alloca i64
  store i64 1, ptr %count
  %threads.ask = alloca %Threads
  %ask.0 = insertvalue %Threads { i64 32, ptr null, ptr null, ptr null }, ptr %context, 2
  %ask.1 = insertvalue %Threads %ask.0, ptr %count, 3
  store %Threads %ask.1, ptr %threads.ask
  %threads.error = call ptr @call(ptr %api, i32 12, ptr %threads.ask)
  call void @forget(ptr %api, ptr %threads.error)
  %there = load i64, ptr %count
  %few = call i64 @llvm.umin.i64(i64 %there, i64 %useful.next)
  %threads = call i64 @llvm.umax.i64(i64 %few, i64 1)
  %is.alone = icmp eq i64 %threads, 1
  ; All begin where a line does, wherever that is.
  %gap = getelementptr %Work, ptr null, i32 1
  %parts.behind = getelementptr %Line, ptr %gap, i64 1
  %lines.behind = getelementptr %Part, ptr %parts.behind, i64 $stage_count
  %line.count = mul i64 %threads, $stage_count
  %lines.end = getelementptr %Line, ptr %lines.behind, i64 %line.count
  %room.behind = ptrtoint ptr %lines.end to i64
  %bytes = add i64 %room.behind, %room.next
  %work = call ptr @malloc(i64 %bytes)
  %work.end = getelementptr %Work, ptr %work, i32 1
  %work.last = ptrtoint ptr %work.end to i64
  %line.behind = add i64 %work.last, 63
  %line.first = and i64 %line.behind, -64
  %parts = inttoptr i64 %line.first to ptr
  %lines = getelementptr %Part, ptr %parts, i64 $stage_count
  %room = getelementptr %Line, ptr %lines, i64 %line.count
  %parts.end = getelementptr %Part, ptr null, i64 $stage_count
  %parts.bytes = ptrtoint ptr %parts.end to i64
  call void @llvm.memcpy.p0.p0.i64(ptr %parts, ptr %planned, i64 %parts.bytes, i1 false)
  %lines.bytes = shl i64 %line.count, 6
  call void @llvm.memset.p0.i64(ptr %lines, i8 0, i64 %lines.bytes, i1 false)
  br label %ready

ready:
  %ready.stage = phi i64 [ 0, %gather ], [ %ready.next, %ready ]
  %ready.part = getelementptr %Part, ptr %parts, i64 %ready.stage
  %ready.line = mul i64 %ready.stage, %threads
  %ready.lines = getelementptr %Line, ptr %lines, i64 %ready.line
  call void @ready(ptr %ready.part, i64 %threads, ptr %ready.lines, ptr %room)
  %ready.next = add i64 %ready.stage, 1
  %ready.more = icmp ult i64 %ready.next, $stage_count
  br i1 %ready.more, label %ready, label %begin

begin:
  %reads.at = getelementptr %Part, ptr %parts, i32 0, i32 4
  %reads = load %Reads, ptr %reads.at
  %follows = call ptr @note(%Reads %reads)
  %work.0 = insertvalue %Work { i64 1, i64 0, i64 0, ptr null, ptr null, ptr @take.part, ptr null, ptr null, i64 $stage_count }, i64 %threads, 1
  %work.1 = insertvalue %Work %work.0, i64 %threads, 2
  %work.2 = insertvalue %Work %work.1, ptr %api, 3
  %work.3 = insertvalue %Work %work.2, ptr %follows, 6
  %work.4 = insertvalue %Work %work.3, ptr %parts, 7
  store %Work %work.4, ptr %work
  br i1 %is.alone, label %work.alone, label %with.others

work.alone:
  %alone.left = call %Stretch @take.part(ptr %work, i64 0, ptr null)
  ret ptr null

with.others:
  %task = alloca %Task
  %task.0 = insertvalue %Task { i64 40, ptr null, ptr null, ptr @join.in, ptr null }, ptr %context, 2
  %task.1 = insertvalue %Task %task.0, ptr %work, 4
  store %Task %task.1, ptr %task
  %work.address = ptrtoint ptr %work to i64
  br label %ask

; Of each other thread: one that waits in a seat, and when no more do, one of XLA's.
ask:
  %others = phi i64 [ 1, %with.others ], [ %others.next, %asked ]
  %seats.from = phi i64 [ 0, %with.others ], [ %seats.seen, %asked ]
  br label %seek

seek:
  %seat = phi i64 [ %seats.from, %ask ], [ %seat.next, %seat.empty ]
  %is.seat = icmp ult i64 %seat, $seats
  br i1 %is.seat, label %seek.here, label %schedule

seek.here:
  %seat.next = add i64 %seat, 1
  %seat.at = getelementptr %Line, ptr inttoptr (i64 $first_seat to ptr), i64 %seat
  %sits = load atomic i64, ptr %seat.at monotonic, align 8
  %is.waiting = icmp eq i64 %sits, 1
  br i1 %is.waiting, label %give, label %seat.empty

give:
  %number.at = getelementptr i64, ptr %seat.at, i64 1
  store atomic i64 %others, ptr %number.at monotonic, align 8
  %given = cmpxchg ptr %seat.at, i64 1, i64 %work.address acq_rel monotonic
  %is.given = extractvalue { i64, i1 } %given, 1
  br i1 %is.given, label %numbered, label %seat.empty

; Who comes from XLA's queue, none of whom was asked yet, counts on from here.
numbered:
  %number.next = add i64 %others, 1
  store atomic i64 %number.next, ptr %work monotonic, align 8
  br label %asked

seat.empty:
  br label %seek

schedule:
  %refused = call ptr @call(ptr %api, i32 11, ptr %task)
  %is.refused = icmp ne ptr %refused, null
  br i1 %is.refused, label %instead, label %asked

instead:
  call void @forget(ptr %api, ptr %refused)
  %instead.left = call %Stretch @take.part(ptr %work, i64 %others, ptr null)
  br label %asked

asked:
  %seats.seen = phi i64 [ %seat.next, %numbered ], [ %seat, %schedule ], [ %seat, %instead ]
  %others.next = add i64 %others, 1
  %is.more = icmp ult i64 %others.next, %threads
  br i1 %is.more, label %ask, label %work.on

; Who has nothing left to do looks for a while whether the others have: so it goes on itself, and they wait for
; the next call in their seats. If they take long, the future is to be told.
work.on:
  %ahead.0 = call %Stretch @work.at(ptr %work, i64 0, ptr null)
  %last = getelementptr %Part, ptr %parts, i64 $last_stage
  %undone.at = getelementptr %Part, ptr %last, i32 0, i32 5
  br label %watch

watch:
  %looks = phi i64 [ 0, %work.on ], [ %looks.next, %again ]
  %ahead = phi %Stretch [ %ahead.0, %work.on ], [ %ahead.next, %again ]
  %undone = load atomic i64, ptr %undone.at acquire, align 8
  %are.done = icmp eq i64 %undone, 0
  br i1 %are.done, label %leave, label %wait

wait:
  %ahead.next = call %Stretch @fetch(%Stretch %ahead)
  $pause
  %looks.next = add i64 %looks, 1
  %is.long = icmp eq i64 %looks.next, $looks
  br i1 %is.long, label %promise, label %again

again:
  br label %watch

promise:
  %made = alloca %Future
  store %Future { i64 24, ptr null, ptr null }, ptr %made
  %made.error = call ptr @call(ptr %api, i32 13, ptr %made)
  call void @forget(ptr %api, ptr %made.error)
  %made.at = getelementptr %Future, ptr %made, i32 0, i32 2
  %future = load ptr, ptr %made.at
  ; Without one there is nothing but to look on.
  %is.unmade = icmp eq ptr %future, null
  br i1 %is.unmade, label %again, label %promised

promised:
  %future.at = getelementptr %Frame, ptr %frame, i32 0, i32 8
  store ptr %future, ptr %future.at
  %told.at = getelementptr %Work, ptr %work, i32 0, i32 4
  %awaits = cmpxchg ptr %told.at, ptr null, ptr %future acq_rel acquire
  %is.awaiting = extractvalue { ptr, i1 } %awaits, 1
  br i1 %is.awaiting, label %leave, label %late

late:
  call void @tell(ptr %api, ptr %future)
  br label %leave

leave:
  call void @leave(ptr %work)
  ret ptr null
}

declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
$pause_declared
declare i64 @llvm.umax.i64(i64, i64)
declare i64 @llvm.umin.i64(i64, i64)
