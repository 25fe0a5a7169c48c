; A custom call of XLA's whose pieces its threads share out among themselves. What a piece is, `@plan` and
; `@piece` say, which stand before this text with `%Call`, what they know of it. `@plan` fills one, and tells how
; many pieces there are, how many threads may be at them, and how many bytes `@prepare` wants, which is called
; with them before the first piece.
; The structs and the order of the functions are those of xla/ffi/api/c_api.h, versions 0.3 and 0.4.

%Buffer = type { i64, ptr, i32, ptr, i64, ptr }                       ; size, extensions, type, data, rank, dims
%Values = type { i64, ptr, i64, ptr, ptr }                            ; size, extensions, count, types, buffers
%Attributes = type { i64, ptr, i64, ptr, ptr, ptr }
%Frame = type { i64, ptr, ptr, ptr, i32, %Values, %Values, %Attributes, ptr } ; ..., api, context, stage, arguments, results, attributes, future
%Version = type { i64, ptr, i32, i32 }                                ; ..., major, minor
%Metadata = type { i64, %Version, i32, i64 }
%Extension = type { i64, i32, ptr, ptr }                              ; ..., metadata
%Api = type { i64, ptr, %Version, ptr, [18 x ptr] }                   ; ..., functions
%Failed = type { i64, ptr, ptr }                                      ; ..., error
%Future = type { i64, ptr, ptr }                                      ; ..., future
%Threads = type { i64, ptr, ptr, ptr }                                ; ..., context, where the number goes
%Task = type { i64, ptr, ptr, ptr, ptr }                              ; ..., context, function, its argument

; What the threads that share a call know of it.
; In this order: threads that came, that are to leave, that were asked; pieces, pieces to be done; api, future;
; which of all calls that asked threads it is. Behind a gap stands for each thread how many pieces of its share are taken, each in a line of the cache, and
; behind these what `@prepare` was given.
%Work = type { i64, i64, i64, i64, i64, ptr, ptr, %Call, i64 }
%Line = type [8 x i64]

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
  %call = alloca %Call
  %plan = call { i64, i64, i64 } @plan(ptr %frame, ptr %call)
  %pieces = extractvalue { i64, i64, i64 } %plan, 0
  %useful = extractvalue { i64, i64, i64 } %plan, 1
  %room.bytes = extractvalue { i64, i64, i64 } %plan, 2
  %count = alloca i64
  store i64 1, ptr %count
  %threads.ask = alloca %Threads
  %ask.0 = insertvalue %Threads { i64 32, ptr null, ptr null, ptr null }, ptr %context, 2
  %ask.1 = insertvalue %Threads %ask.0, ptr %count, 3
  store %Threads %ask.1, ptr %threads.ask
  %threads.error = call ptr @call(ptr %api, i32 12, ptr %threads.ask)
  call void @forget(ptr %api, ptr %threads.error)
  %there = load i64, ptr %count
  %few = call i64 @llvm.umin.i64(i64 %there, i64 %useful)
  %threads = call i64 @llvm.umax.i64(i64 %few, i64 1)
  %is.alone = icmp eq i64 %threads, 1
  %gap = getelementptr %Work, ptr null, i32 1
  %lines.behind = getelementptr %Line, ptr %gap, i64 1
  %lines.end = getelementptr %Line, ptr %lines.behind, i64 %threads
  %room.behind = ptrtoint ptr %lines.end to i64
  %bytes = add i64 %room.behind, %room.bytes
  %work = call ptr @malloc(i64 %bytes)
  %all = load %Call, ptr %call
  %work.0 = insertvalue %Work zeroinitializer, i64 %threads, 1
  %work.1 = insertvalue %Work %work.0, i64 %threads, 2
  %work.2 = insertvalue %Work %work.1, i64 %pieces, 3
  %work.3 = insertvalue %Work %work.2, i64 %pieces, 4
  %work.4 = insertvalue %Work %work.3, ptr %api, 5
  %work.5 = insertvalue %Work %work.4, %Call %all, 7
  store %Work %work.5, ptr %work
  %work.end = getelementptr %Work, ptr %work, i32 1
  %lines = getelementptr %Line, ptr %work.end, i64 1
  %lines.bytes = shl i64 %threads, 6
  call void @llvm.memset.p0.i64(ptr %lines, i8 0, i64 %lines.bytes, i1 false)
  %own = getelementptr %Work, ptr %work, i32 0, i32 7
  %room = getelementptr i8, ptr %lines, i64 %lines.bytes
  call void @prepare(ptr %own, ptr %room)
  br i1 %is.alone, label %work.on, label %share

share:
  %made = alloca %Future
  store %Future { i64 24, ptr null, ptr null }, ptr %made
  %made.error = call ptr @call(ptr %api, i32 13, ptr %made)
  call void @forget(ptr %api, ptr %made.error)
  %made.at = getelementptr %Future, ptr %made, i32 0, i32 2
  %future = load ptr, ptr %made.at
  %future.at = getelementptr %Frame, ptr %frame, i32 0, i32 8
  store ptr %future, ptr %future.at
  %told.at = getelementptr %Work, ptr %work, i32 0, i32 6
  store ptr %future, ptr %told.at
  %is.unmade = icmp eq ptr %future, null
  br i1 %is.unmade, label %alone, label %with.others

; Nobody could be told when others are done.
alone:
  %leave.at = getelementptr %Work, ptr %work, i32 0, i32 1
  store i64 1, ptr %leave.at
  br label %work.on

with.others:
  %task = alloca %Task
  %task.0 = insertvalue %Task { i64 40, ptr null, ptr null, ptr @join.in, ptr null }, ptr %context, 2
  %task.1 = insertvalue %Task %task.0, ptr %work, 4
  store %Task %task.1, ptr %task
  %calls.before = load atomic i64, ptr inttoptr (i64 $calls to ptr) monotonic, align 8
  %number = add i64 %calls.before, 1
  %number.at = getelementptr %Work, ptr %work, i32 0, i32 8
  store i64 %number, ptr %number.at
  br label %ask

ask:
  %others = phi i64 [ 1, %with.others ], [ %others.next, %asked ]
  %refused = call ptr @call(ptr %api, i32 11, ptr %task)
  %is.refused = icmp ne ptr %refused, null
  br i1 %is.refused, label %instead, label %asked

instead:
  call void @forget(ptr %api, ptr %refused)
  call void @take.part(ptr %work)
  br label %asked

asked:
  %others.next = add i64 %others, 1
  %is.more = icmp ult i64 %others.next, %threads
  br i1 %is.more, label %ask, label %call.out

; Not before: who waits for it goes to look for a task.
call.out:
  %calls.known = atomicrmw add ptr inttoptr (i64 $calls to ptr), i64 1 monotonic
  br label %work.on

work.on:
  call void @take.part(ptr %work)
  ret ptr null
}

; Takes part, and then waits a while for a later call of any such program, without which the thread would fall
; asleep: waking it takes longer than many a call.
define void @join.in(ptr %work) {
entry:
  %number.at = getelementptr %Work, ptr %work, i32 0, i32 8
  %number = load i64, ptr %number.at
  call void @take.part(ptr %work)
  br label %look

look:
  %looks = phi i64 [ 0, %entry ], [ %looks.next, %wait ]
  %now = load atomic i64, ptr inttoptr (i64 $calls to ptr) monotonic, align 8
  %is.called = icmp ugt i64 %now, %number
  %is.enough = icmp uge i64 %looks, $looks
  %is.over = or i1 %is.called, %is.enough
  br i1 %is.over, label %end, label %wait

wait:
  $pause
  %looks.next = add i64 %looks, 1
  br label %look

end:
  ret void
}

; Takes one piece after another of a share that is the thread's own, then of the others', until none is left:
; a thread that reads on where it is reads faster. The result is there when what each thread did, which it tells
; when nothing is left, adds up to all pieces. Who comes later touches nothing but `%Work`; the last to leave
; frees it.
define void @take.part(ptr %work) {
entry:
  %me = atomicrmw add ptr %work, i64 1 monotonic
  %threads.at = getelementptr %Work, ptr %work, i32 0, i32 2
  %threads = load i64, ptr %threads.at
  %pieces.at = getelementptr %Work, ptr %work, i32 0, i32 3
  %pieces = load i64, ptr %pieces.at
  %api.at = getelementptr %Work, ptr %work, i32 0, i32 5
  %api = load ptr, ptr %api.at
  %future.at = getelementptr %Work, ptr %work, i32 0, i32 6
  %future = load ptr, ptr %future.at
  %own = getelementptr %Work, ptr %work, i32 0, i32 7
  %work.end = getelementptr %Work, ptr %work, i32 1
  %lines = getelementptr %Line, ptr %work.end, i64 1
  br label %share

share:
  %seen = phi i64 [ 0, %entry ], [ %seen.next, %share.done ]
  %did = phi i64 [ 0, %entry ], [ %did.now, %share.done ]
  %owner.far = add i64 %me, %seen
  %owner = urem i64 %owner.far, %threads
  %owner.next = add i64 %owner, 1
  %first.far = mul i64 %owner, %pieces
  %first = udiv i64 %first.far, %threads
  %end.far = mul i64 %owner.next, %pieces
  %end = udiv i64 %end.far, %threads
  %taken.at = getelementptr %Line, ptr %lines, i64 %owner
  br label %next

next:
  %did.now = phi i64 [ %did, %share ], [ %did.next, %do ]
  %taken = atomicrmw add ptr %taken.at, i64 1 monotonic
  %piece = add i64 %first, %taken
  %is.there = icmp ult i64 %piece, %end
  br i1 %is.there, label %do, label %share.done

do:
  call void @piece(ptr %own, i64 %piece)
  %did.next = add i64 %did.now, 1
  br label %next

share.done:
  %seen.next = add i64 %seen, 1
  %is.more = icmp ult i64 %seen.next, %threads
  br i1 %is.more, label %share, label %count

count:
  %undone.at = getelementptr %Work, ptr %work, i32 0, i32 4
  %undone = atomicrmw sub ptr %undone.at, i64 %did.now acq_rel
  %are.done = icmp eq i64 %undone, %did.now
  %is.awaited = icmp ne ptr %future, null
  %did.some = icmp ne i64 %did.now, 0
  %did.last = and i1 %are.done, %did.some
  %is.to.tell = and i1 %did.last, %is.awaited
  br i1 %is.to.tell, label %tell, label %leave

tell:
  %told = alloca %Future
  %told.0 = insertvalue %Future { i64 24, ptr null, ptr null }, ptr %future, 2
  store %Future %told.0, ptr %told
  %error = call ptr @call(ptr %api, i32 14, ptr %told)
  call void @forget(ptr %api, ptr %error)
  br label %leave

leave:
  %left.at = getelementptr %Work, ptr %work, i32 0, i32 1
  %left = atomicrmw sub ptr %left.at, i64 1 acq_rel
  %is.last = icmp eq i64 %left, 1
  br i1 %is.last, label %last, label %done

last:
  call void @free(ptr %work)
  br label %done

done:
  ret void
}

define ptr @argument(ptr %frame, i64 %which) alwaysinline {
  %buffers.at = getelementptr %Frame, ptr %frame, i32 0, i32 5, i32 4
  %buffers = load ptr, ptr %buffers.at
  %buffer.at = getelementptr ptr, ptr %buffers, i64 %which
  %buffer = load ptr, ptr %buffer.at
  ret ptr %buffer
}

define ptr @result(ptr %frame, i64 %which) alwaysinline {
  %buffers.at = getelementptr %Frame, ptr %frame, i32 0, i32 6, i32 4
  %buffers = load ptr, ptr %buffers.at
  %buffer.at = getelementptr ptr, ptr %buffers, i64 %which
  %buffer = load ptr, ptr %buffer.at
  ret ptr %buffer
}

define ptr @data(ptr %buffer) alwaysinline {
  %data.at = getelementptr %Buffer, ptr %buffer, i32 0, i32 3
  %data = load ptr, ptr %data.at
  ret ptr %data
}

define i64 @dimension(ptr %buffer, i64 %axis) alwaysinline {
  %dims.at = getelementptr %Buffer, ptr %buffer, i32 0, i32 5
  %dims = load ptr, ptr %dims.at
  %dimension.at = getelementptr i64, ptr %dims, i64 %axis
  %dimension = load i64, ptr %dimension.at
  ret i64 %dimension
}

define i64 @dimension.from.end(ptr %buffer, i64 %back) alwaysinline {
  %rank.at = getelementptr %Buffer, ptr %buffer, i32 0, i32 4
  %rank = load i64, ptr %rank.at
  %axis = sub i64 %rank, %back
  %dimension = call i64 @dimension(ptr %buffer, i64 %axis)
  ret i64 %dimension
}

; One of XLA's functions, by its place in their list: 2 frees an error, 11 gives the threads a task, 12 counts
; them, 13 makes a future, 14 says that it is there.
define ptr @call(ptr %api, i32 %which, ptr %argument) alwaysinline {
  %function.at = getelementptr %Api, ptr %api, i32 0, i32 4, i32 %which
  %function = load ptr, ptr %function.at
  %error = call ptr %function(ptr %argument)
  ret ptr %error
}

define void @forget(ptr %api, ptr %error) alwaysinline {
entry:
  %is.error = icmp ne ptr %error, null
  br i1 %is.error, label %free, label %done

free:
  %failed = alloca %Failed
  %failed.0 = insertvalue %Failed { i64 24, ptr null, ptr null }, ptr %error, 2
  store %Failed %failed.0, ptr %failed
  %nothing = call ptr @call(ptr %api, i32 2, ptr %failed)
  br label %done

done:
  ret void
}

declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
$pause_declared
declare i64 @llvm.umax.i64(i64, i64)
declare i64 @llvm.umin.i64(i64, i64)
