; Takes part, and then waits a while in a seat for a later call of any such program, without which the thread would
; fall asleep: waking it takes longer than many a call. In a seat is 0 where it is free, 1 where a thread waits, and
; else the work it was given. After some of it the thread goes and sees what else there is to do.
define void @join.in(ptr %work) {
entry:
  %me.first = atomicrmw add ptr %work, i64 1 monotonic
  %ahead.first = call %Stretch @take.part(ptr %work, i64 %me.first, ptr null)
  br label %seek

seek:
  %seat = phi i64 [ 0, %entry ], [ %seat.next, %seat.taken ]
  %seat.at = getelementptr %Line, ptr inttoptr (i64 $first_seat to ptr), i64 %seat
  %sits = load atomic i64, ptr %seat.at monotonic, align 8
  %is.free = icmp eq i64 %sits, 0
  br i1 %is.free, label %sit, label %seat.taken

sit:
  %found = cmpxchg ptr %seat.at, i64 0, i64 1 monotonic monotonic
  %is.found = extractvalue { i64, i1 } %found, 1
  br i1 %is.found, label %look, label %seat.taken

seat.taken:
  %seat.next = add i64 %seat, 1
  %are.more = icmp ult i64 %seat.next, $seats
  br i1 %are.more, label %seek, label %end

look:
  %looks = phi i64 [ 0, %sit ], [ 0, %stay ], [ %looks.next, %wait ]
  %works = phi i64 [ 0, %sit ], [ %works.next, %stay ], [ %works, %wait ]
  %ahead = phi %Stretch [ %ahead.first, %sit ], [ %ahead.work, %stay ], [ %ahead.next, %wait ]
  %now = load atomic i64, ptr %seat.at acquire, align 8
  %is.given = icmp ne i64 %now, 1
  br i1 %is.given, label %given, label %patience

patience:
  %is.enough = icmp uge i64 %looks, $looks
  br i1 %is.enough, label %rise, label %wait

wait:
  %ahead.next = call %Stretch @fetch(%Stretch %ahead)
  $pause
  %looks.next = add i64 %looks, 1
  br label %look

rise:
  %last = cmpxchg ptr %seat.at, i64 1, i64 0 acquire acquire
  %has.risen = extractvalue { i64, i1 } %last, 1
  %given.last = extractvalue { i64, i1 } %last, 0
  br i1 %has.risen, label %end, label %given

given:
  %address = phi i64 [ %now, %look ], [ %given.last, %rise ]
  %work.given = inttoptr i64 %address to ptr
  %stages.at = getelementptr %Work, ptr %work.given, i32 0, i32 8
  %stages = load i64, ptr %stages.at
  %function.at = getelementptr %Work, ptr %work.given, i32 0, i32 5
  %function = load ptr, ptr %function.at
  %fetched = extractvalue %Stretch %ahead, 0
  %number.at = getelementptr i64, ptr %seat.at, i64 1
  %me = load atomic i64, ptr %number.at monotonic, align 8
  %ahead.work = call %Stretch %function(ptr %work.given, i64 %me, ptr %fetched)
  %works.next = add i64 %works, %stages
  %is.long = icmp uge i64 %works.next, $works
  br i1 %is.long, label %go, label %stay

stay:
  store atomic i64 1, ptr %seat.at release, align 8
  br label %look

go:
  store atomic i64 0, ptr %seat.at release, align 8
  br label %end

end:
  ret void
}

define %Stretch @take.part(ptr %work, i64 %me, ptr %fetched) {
  %ahead = call %Stretch @work.at(ptr %work, i64 %me, ptr %fetched)
  call void @leave(ptr %work)
  ret %Stretch %ahead
}

; Does a share of each stage, and waits until the others have done theirs before the next; the last nobody waits for
; here. Meanwhile it fetches what its share of the next begins with, and tells what is left to be fetched for the call
; that follows. The result is there when what each thread did, which it tells when nothing is left, adds up to all
; pieces. Who comes later touches nothing but `%Work` and its parts.
define %Stretch @work.at(ptr %work, i64 %number, ptr %fetched.first) {
entry:
  %threads.at = getelementptr %Work, ptr %work, i32 0, i32 2
  %threads = load i64, ptr %threads.at
  %me = urem i64 %number, %threads
  %api.at = getelementptr %Work, ptr %work, i32 0, i32 3
  %api = load ptr, ptr %api.at
  %follows.at = getelementptr %Work, ptr %work, i32 0, i32 6
  %follows = load ptr, ptr %follows.at
  %parts.at = getelementptr %Work, ptr %work, i32 0, i32 7
  %parts = load ptr, ptr %parts.at
  br label %stage

stage:
  %which = phi i64 [ 0, %entry ], [ %which.next, %passed ]
  %fetched = phi ptr [ %fetched.first, %entry ], [ %fetched.next, %passed ]
  %part = getelementptr %Part, ptr %parts, i64 %which
  call void @prepared(ptr %part, i64 %threads, i64 %me, ptr %fetched)
  %did = call i64 @pieces(ptr %part, i64 %threads, i64 %me)
  %undone.at = getelementptr %Part, ptr %part, i32 0, i32 5
  %which.next = add i64 %which, 1
  %is.last = icmp eq i64 %which.next, $stage_count
  br i1 %is.last, label %final, label %inner

inner:
  %next = getelementptr %Part, ptr %parts, i64 %which.next
  %next.reads.at = getelementptr %Part, ptr %next, i32 0, i32 4
  %next.reads = load %Reads, ptr %next.reads.at
  %next.ahead = call %Stretch @beginning(%Reads %next.reads, i64 %me)
  %inner.undone = atomicrmw sub ptr %undone.at, i64 %did acq_rel
  br label %look

look:
  %looks = phi i64 [ 0, %inner ], [ %looks.next, %wait ]
  %ahead = phi %Stretch [ %next.ahead, %inner ], [ %ahead.next, %wait ]
  %left = load atomic i64, ptr %undone.at acquire, align 8
  %are.passed = icmp eq i64 %left, 0
  br i1 %are.passed, label %passed, label %wait

wait:
  %ahead.next = call %Stretch @fetch(%Stretch %ahead)
  %looks.next = call i64 @looked(i64 %looks)
  br label %look

passed:
  %fetched.next = extractvalue %Stretch %ahead, 0
  br label %stage

final:
  %reads = call %Reads @noted(ptr %follows)
  %behind = call %Stretch @beginning(%Reads %reads, i64 %me)
  %undone = atomicrmw sub ptr %undone.at, i64 %did acq_rel
  %are.done = icmp eq i64 %undone, %did
  %did.some = icmp ne i64 %did, 0
  %did.last = and i1 %are.done, %did.some
  br i1 %did.last, label %last, label %done

last:
  %future.at = getelementptr %Work, ptr %work, i32 0, i32 4
  %future = atomicrmw xchg ptr %future.at, ptr inttoptr (i64 1 to ptr) acq_rel
  %is.awaited = icmp ne ptr %future, null
  br i1 %is.awaited, label %tell, label %done

tell:
  call void @tell(ptr %api, ptr %future)
  br label %done

done:
  ret %Stretch %behind
}

; Takes some of a share, again and again, first of the thread's own, then of the others', until none is left: a thread
; that reads on where it is reads faster. Some are half of what is left of its own, and a thread's part of what is left of
; another's, since to take any a core waits, on x86, until the others see all it wrote; what is taken nobody else does.
; Pieces that are not alike are taken one by one. How many it did.
define i64 @pieces(ptr %part, i64 %threads, i64 %me) alwaysinline {
entry:
  %pieces = load i64, ptr %part
  %stage.at = getelementptr %Part, ptr %part, i32 0, i32 2
  %stage = load ptr, ptr %stage.at
  %piece.at = getelementptr %Stage, ptr %stage, i32 0, i32 4
  %do.piece = load ptr, ptr %piece.at
  %lines.at = getelementptr %Part, ptr %part, i32 0, i32 3
  %lines = load ptr, ptr %lines.at
  %call = getelementptr %Part, ptr %part, i32 0, i32 7
  %reads.at = getelementptr %Part, ptr %part, i32 0, i32 4
  %read.first = load ptr, ptr %reads.at
  %are.alike = icmp ne ptr %read.first, null
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
  %is.own = icmp eq i64 %seen, 0
  %divisor = select i1 %is.own, i64 2, i64 %threads
  br label %next

next:
  %did.now = phi i64 [ %did, %share ], [ %did.next, %do ]
  ; Looking takes less than writing does, which takes the line from its thread.
  %seen.taken = load atomic i64, ptr %taken.at monotonic, align 8
  %seen.piece = add i64 %first, %seen.taken
  %is.left = icmp ult i64 %seen.piece, %end
  br i1 %is.left, label %take, label %share.done

take:
  %left = sub i64 %end, %seen.piece
  %fraction = udiv i64 %left, %divisor
  %several = call i64 @llvm.umax.i64(i64 %fraction, i64 1)
  %some = select i1 %are.alike, i64 %several, i64 1
  %taken = atomicrmw add ptr %taken.at, i64 %some monotonic
  %piece.first = add i64 %first, %taken
  %piece.behind = add i64 %piece.first, %some
  %piece.end = call i64 @llvm.umin.i64(i64 %piece.behind, i64 %end)
  %is.there = icmp ult i64 %piece.first, %piece.end
  br i1 %is.there, label %do, label %share.done

do:
  %piece = phi i64 [ %piece.first, %take ], [ %piece.next, %do ]
  %did.before = phi i64 [ %did.now, %take ], [ %did.next, %do ]
  call void %do.piece(ptr %call, i64 %piece)
  %did.next = add i64 %did.before, 1
  %piece.next = add i64 %piece, 1
  %are.more = icmp ult i64 %piece.next, %piece.end
  br i1 %are.more, label %do, label %next

share.done:
  %seen.next = add i64 %seen, 1
  %is.more = icmp ult i64 %seen.next, %threads
  br i1 %is.more, label %share, label %done

done:
  ret i64 %did.now
}

; Makes its share of the preparations and those that nobody took, and waits for those that others make.
; Meanwhile they fetch what the thread's first piece begins with.
define void @prepared(ptr %part, i64 %threads, i64 %me, ptr %fetched) alwaysinline {
entry:
  %all.at = getelementptr %Part, ptr %part, i32 0, i32 1
  %made.at = getelementptr %Part, ptr %part, i32 0, i32 6
  %all = load i64, ptr %all.at
  %is.nothing = icmp eq i64 %all, 0
  br i1 %is.nothing, label %done, label %some

some:
  %shares = call i64 @llvm.umin.i64(i64 %all, i64 %threads)
  %stage.at = getelementptr %Part, ptr %part, i32 0, i32 2
  %stage = load ptr, ptr %stage.at
  %preparation.at = getelementptr %Stage, ptr %stage, i32 0, i32 3
  %preparation = load ptr, ptr %preparation.at
  %call = getelementptr %Part, ptr %part, i32 0, i32 7
  %lines.at = getelementptr %Part, ptr %part, i32 0, i32 3
  %lines = load ptr, ptr %lines.at
  %reads.at = getelementptr %Part, ptr %part, i32 0, i32 4
  %reads = load %Reads, ptr %reads.at
  %stretch = call %Stretch @beginning(%Reads %reads, i64 %me)
  %start = extractvalue %Stretch %stretch, 0
  %ahead.end = extractvalue %Stretch %stretch, 1
  ; The thread may have fetched some of it before.
  %is.behind = icmp ugt ptr %fetched, %start
  %is.before = icmp ule ptr %fetched, %ahead.end
  %is.within = and i1 %is.behind, %is.before
  %ahead.0 = select i1 %is.within, ptr %fetched, ptr %start
  br label %next

next:
  %seen = phi i64 [ 0, %some ], [ %seen.next, %seen.done ]
  %ahead.share = phi ptr [ %ahead.0, %some ], [ %ahead.seen, %seen.done ]
  %is.there = icmp ult i64 %seen, %shares
  br i1 %is.there, label %see, label %look

see:
  %share.far = add i64 %me, %seen
  %share = urem i64 %share.far, %shares
  %line = getelementptr %Line, ptr %lines, i64 %share
  %taken.at = getelementptr i64, ptr %line, i64 1
  %taken = load atomic i64, ptr %taken.at monotonic, align 8
  %is.left = icmp eq i64 %taken, 0
  br i1 %is.left, label %take, label %seen.done

take:
  %taken.before = atomicrmw xchg ptr %taken.at, i64 1 monotonic
  %is.taken = icmp eq i64 %taken.before, 0
  br i1 %is.taken, label %begin, label %seen.done

seen.done:
  %ahead.seen = phi ptr [ %ahead.share, %see ], [ %ahead.share, %take ], [ %ahead, %told ]
  %seen.next = add i64 %seen, 1
  br label %next

begin:
  %share.next = add i64 %share, 1
  %first.far = mul i64 %share, %all
  %first = udiv i64 %first.far, %shares
  %end.far = mul i64 %share.next, %all
  %end = udiv i64 %end.far, %shares
  br label %more

more:
  %which = phi i64 [ %first, %begin ], [ %which.next, %do ]
  %ahead = phi ptr [ %ahead.share, %begin ], [ %ahead.next, %do ]
  %is.more = icmp ult i64 %which, %end
  br i1 %is.more, label %do, label %told

do:
  %ahead.far = call ptr %preparation(ptr %call, i64 %which, ptr %ahead)
  %is.far = icmp ugt ptr %ahead.far, %ahead.end
  %ahead.next = select i1 %is.far, ptr %ahead, ptr %ahead.far
  %which.next = add i64 %which, 1
  br label %more

told:
  %before = atomicrmw add ptr %made.at, i64 1 acq_rel
  br label %seen.done

look:
  %looks = phi i64 [ 0, %next ], [ %looks.next, %wait ]
  %ahead.look = phi ptr [ %ahead.share, %next ], [ %ahead.waited, %wait ]
  %made = load atomic i64, ptr %made.at acquire, align 8
  %are.made = icmp eq i64 %made, %shares
  br i1 %are.made, label %done, label %wait

wait:
  %waited.from = insertvalue %Stretch %stretch, ptr %ahead.look, 0
  %waited = call %Stretch @fetch(%Stretch %waited.from)
  %ahead.waited = extractvalue %Stretch %waited, 0
  %looks.next = call i64 @looked(i64 %looks)
  br label %look

done:
  ret void
}

; Between two looks at what others do: after many a thread lets others have its core, since what it waits for may be
; one of them that has none. How often it looked.
define i64 @looked(i64 %before) alwaysinline {
entry:
  %looks = add i64 %before, 1
  %is.long = icmp uge i64 %looks, $looks
  br i1 %is.long, label %long, label %short

long:
  $step_aside
  br label %done

short:
  $pause
  br label %done

done:
  ret i64 %looks
}

$step_aside_declared
; The last to leave frees it.
define void @leave(ptr %work) alwaysinline {
entry:
  %left.at = getelementptr %Work, ptr %work, i32 0, i32 1
  %left = atomicrmw sub ptr %left.at, i64 1 acq_rel
  %is.last = icmp eq i64 %left, 1
  br i1 %is.last, label %free, label %done

free:
  call void @free(ptr %work)
  br label %done

done:
  ret void
}
