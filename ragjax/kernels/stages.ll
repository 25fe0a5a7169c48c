; A call has one stage after another, each a kernel whose pieces threads share out among themselves. Of a kernel there
; are five functions. `plan` makes of its buffers what the others are given, and tells how many pieces there are, how
; many threads may be at them, and how many bytes it wants; it reads sizes and addresses alone, since all stages are
; planned before the first begins. `prepare` is told where these bytes are, and tells how many preparations there are;
; it writes nothing there, where every stage has its bytes in its turn. Preparations are shared out like pieces, and all
; are made before the first piece: what one is, `preparation` says, which may fetch what stands at the place it is
; given, and tells the next. `reads` tells what is worth fetching before the stage begins: the first of parts that
; follow one another and are shared out like the pieces, the bytes of a part, and how many there are. Pieces that read
; such parts are taken to be alike, none much longer than another: a thread takes several at a time. `piece` does one.

; Of a thread's line, how many pieces of its share are taken, and whether its preparations are.
%Line = type [8 x i64]
; The functions: plan, prepare, reads, preparation, piece; and in the list of places the first of its own, which are
; arguments, and then results, and how many there are of each.
%Stage = type { ptr, ptr, ptr, ptr, ptr, i64, i64, i64 }
; Where a stage finds a buffer: whether among the results of the call, at which number, how many bytes behind its
; first; and of what rank and dimensions it takes it to be.
%Place = type { i64, i64, i64, i64, ptr }
; Of a stage, what threads know: pieces, preparations; the stage; a line of the cache for each thread; what it reads.
; What several write to has lines of its own: pieces to be done, and shares of the preparations that are made. And what
; the kernel knows.
%Part = type { i64, i64, ptr, ptr, %Reads, %Line, %Line, [$call_words x i64] }
; Of a call: how many threads have numbers, are to leave, were asked; api; the future to be told, null where nobody
; waits for it, 1 where all is done; by what function of this text a thread takes part; where is noted what is read next;
; the parts, and how many there are. These follow in memory, and behind them the threads' lines, and the bytes wanted.
%Work = type { i64, i64, i64, ptr, ptr, ptr, ptr, ptr, i64 }

$tables
; A frame for a stage: that of the call where it has one alone, else what its places say.
define ptr @framed(ptr %frame, ptr %stage, ptr %own, ptr %buffers, ptr %pointers) alwaysinline {
entry:
  br i1 $is_one, label %one, label %several

one:
  ret ptr %frame

several:
  %first.at = getelementptr %Stage, ptr %stage, i32 0, i32 5
  %arguments.at = getelementptr %Stage, ptr %stage, i32 0, i32 6
  %results.at = getelementptr %Stage, ptr %stage, i32 0, i32 7
  %first = load i64, ptr %first.at
  %arguments = load i64, ptr %arguments.at
  %results = load i64, ptr %results.at
  %count = add i64 %arguments, %results
  br label %next

next:
  %i = phi i64 [ 0, %several ], [ %i.next, %next ]
  %number = add i64 %first, %i
  %place.at = getelementptr %Place, ptr @places, i64 %number
  %place = load %Place, ptr %place.at
  %is.result.wide = extractvalue %Place %place, 0
  %which = extractvalue %Place %place, 1
  %behind = extractvalue %Place %place, 2
  %rank = extractvalue %Place %place, 3
  %dimensions = extractvalue %Place %place, 4
  %is.result = trunc i64 %is.result.wide to i1
  %arguments.all = getelementptr %Frame, ptr %frame, i32 0, i32 5, i32 4
  %results.all = getelementptr %Frame, ptr %frame, i32 0, i32 6, i32 4
  %list.at = select i1 %is.result, ptr %results.all, ptr %arguments.all
  %list = load ptr, ptr %list.at
  %given.at = getelementptr ptr, ptr %list, i64 %which
  %given = load ptr, ptr %given.at
  %data = call ptr @data(ptr %given)
  %data.here = getelementptr i8, ptr %data, i64 %behind
  %buffer.0 = insertvalue %Buffer zeroinitializer, ptr %data.here, 3
  %buffer.1 = insertvalue %Buffer %buffer.0, i64 %rank, 4
  %buffer.2 = insertvalue %Buffer %buffer.1, ptr %dimensions, 5
  %buffer.at = getelementptr %Buffer, ptr %buffers, i64 %i
  store %Buffer %buffer.2, ptr %buffer.at
  %pointer.at = getelementptr ptr, ptr %pointers, i64 %i
  store ptr %buffer.at, ptr %pointer.at
  %i.next = add i64 %i, 1
  %is.more = icmp ult i64 %i.next, %count
  br i1 %is.more, label %next, label %made

made:
  %results.own = getelementptr ptr, ptr %pointers, i64 %arguments
  %arguments.to = getelementptr %Frame, ptr %own, i32 0, i32 5, i32 4
  %results.to = getelementptr %Frame, ptr %own, i32 0, i32 6, i32 4
  store ptr %pointers, ptr %arguments.to
  store ptr %results.own, ptr %results.to
  ret ptr %own
}

; Plans a stage; how many threads it may have, and how many bytes it wants.
define { i64, i64 } @plan.stage(ptr %frame, ptr %stage, ptr %part) {
entry:
  %own = alloca %Frame
  %buffers = alloca [$most_places x %Buffer]
  %pointers = alloca [$most_places x ptr]
  %call = getelementptr %Part, ptr %part, i32 0, i32 7
  %framed = call ptr @framed(ptr %frame, ptr %stage, ptr %own, ptr %buffers, ptr %pointers)
  %plan = load ptr, ptr %stage
  %planned = call { i64, i64, i64 } %plan(ptr %framed, ptr %call)
  %pieces = extractvalue { i64, i64, i64 } %planned, 0
  %useful = extractvalue { i64, i64, i64 } %planned, 1
  %room = extractvalue { i64, i64, i64 } %planned, 2
  %reads.at = getelementptr %Stage, ptr %stage, i32 0, i32 2
  %reads = load ptr, ptr %reads.at
  %read = call { ptr, i64, i64 } %reads(ptr %call)
  %read.first = extractvalue { ptr, i64, i64 } %read, 0
  %read.bytes = extractvalue { ptr, i64, i64 } %read, 1
  %read.parts = extractvalue { ptr, i64, i64 } %read, 2
  %reads.0 = insertvalue %Reads zeroinitializer, ptr %read.first, 0
  %reads.1 = insertvalue %Reads %reads.0, i64 %read.bytes, 1
  %reads.2 = insertvalue %Reads %reads.1, i64 %read.parts, 2
  %reads.to = getelementptr %Part, ptr %part, i32 0, i32 4
  store %Reads %reads.2, ptr %reads.to
  store i64 %pieces, ptr %part
  %undone.at = getelementptr %Part, ptr %part, i32 0, i32 5
  store i64 %pieces, ptr %undone.at
  %made.at = getelementptr %Part, ptr %part, i32 0, i32 6
  store i64 0, ptr %made.at
  %stage.at = getelementptr %Part, ptr %part, i32 0, i32 2
  store ptr %stage, ptr %stage.at
  %told.0 = insertvalue { i64, i64 } zeroinitializer, i64 %useful, 0
  %told = insertvalue { i64, i64 } %told.0, i64 %room, 1
  ret { i64, i64 } %told
}

; What remains to be done before threads come, when it is known how many there are.
define void @ready(ptr %part, i64 %threads, ptr %lines, ptr %room) alwaysinline {
  %lines.at = getelementptr %Part, ptr %part, i32 0, i32 3
  store ptr %lines, ptr %lines.at
  %threads.at = getelementptr %Part, ptr %part, i32 0, i32 4, i32 3
  store i64 %threads, ptr %threads.at
  %stage.at = getelementptr %Part, ptr %part, i32 0, i32 2
  %stage = load ptr, ptr %stage.at
  %prepare.at = getelementptr %Stage, ptr %stage, i32 0, i32 1
  %prepare = load ptr, ptr %prepare.at
  %call = getelementptr %Part, ptr %part, i32 0, i32 7
  %preparations = call i64 %prepare(ptr %call, ptr %room)
  %preparations.at = getelementptr %Part, ptr %part, i32 0, i32 1
  store i64 %preparations, ptr %preparations.at
  ret void
}
