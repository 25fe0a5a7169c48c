; Takes part, and then waits a while in a seat for a later call of any such program, without which the thread would
; fall asleep: waking it takes longer than many a call. In a seat is 0 where it is free, 1 where a thread waits, and
; else the work it was given. After some of it the thread goes and sees what else there is to do.
define void @join.in(ptr %work) {
entry:
  call void @take.part(ptr %work)
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
  %now = load atomic i64, ptr %seat.at acquire, align 8
  %is.given = icmp ne i64 %now, 1
  br i1 %is.given, label %given, label %patience

patience:
  %is.enough = icmp uge i64 %looks, $looks
  br i1 %is.enough, label %rise, label %wait

wait:
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
  %function.at = getelementptr %Work, ptr %work.given, i32 0, i32 7
  %function = load ptr, ptr %function.at
  call void %function(ptr %work.given)
  %works.next = add i64 %works, 1
  %is.long = icmp eq i64 %works.next, $works
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

define void @take.part(ptr %work) {
  call void @work.at(ptr %work)
  call void @leave(ptr %work)
  ret void
}

; Takes one piece after another of a share that is the thread's own, then of the others', until none is left:
; a thread that reads on where it is reads faster. The result is there when what each thread did, which it tells
; when nothing is left, adds up to all pieces. Who comes later touches nothing but `%Work`.
define void @work.at(ptr %work) {
entry:
  %me = atomicrmw add ptr %work, i64 1 monotonic
  %threads.at = getelementptr %Work, ptr %work, i32 0, i32 2
  %threads = load i64, ptr %threads.at
  %pieces.at = getelementptr %Work, ptr %work, i32 0, i32 3
  %pieces = load i64, ptr %pieces.at
  %api.at = getelementptr %Work, ptr %work, i32 0, i32 5
  %api = load ptr, ptr %api.at
  %own = getelementptr %Work, ptr %work, i32 0, i32 11
  %work.end = getelementptr %Work, ptr %work, i32 1
  %lines = getelementptr %Line, ptr %work.end, i64 1
  call void @prepared(ptr %work, ptr %own, i64 %me)
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
  %did.some = icmp ne i64 %did.now, 0
  %did.last = and i1 %are.done, %did.some
  br i1 %did.last, label %last, label %done

last:
  %future.at = getelementptr %Work, ptr %work, i32 0, i32 6
  %future = atomicrmw xchg ptr %future.at, ptr inttoptr (i64 1 to ptr) acq_rel
  %is.awaited = icmp ne ptr %future, null
  br i1 %is.awaited, label %tell, label %done

tell:
  call void @tell(ptr %api, ptr %future)
  br label %done

done:
  ret void
}

; Makes one share of the preparations after another until all are taken, and waits for those that others make.
; Meanwhile they fetch what the thread's first piece begins with.
define void @prepared(ptr %work, ptr %own, i64 %me) alwaysinline {
entry:
  %threads.at = getelementptr %Work, ptr %work, i32 0, i32 2
  %threads = load i64, ptr %threads.at
  %all.at = getelementptr %Work, ptr %work, i32 0, i32 8
  %taken.at = getelementptr %Work, ptr %work, i32 0, i32 9
  %made.at = getelementptr %Work, ptr %work, i32 0, i32 10
  %all = load i64, ptr %all.at
  %is.nothing = icmp eq i64 %all, 0
  br i1 %is.nothing, label %done, label %some

some:
  %pieces.at = getelementptr %Work, ptr %work, i32 0, i32 3
  %pieces = load i64, ptr %pieces.at
  %shares = call i64 @llvm.umin.i64(i64 %all, i64 %threads)
  %owner = urem i64 %me, %threads
  %piece.far = mul i64 %owner, %pieces
  %piece = udiv i64 %piece.far, %threads
  %ahead.0 = call ptr @begins(ptr %own, i64 %piece)
  %ahead.end = getelementptr i8, ptr %ahead.0, i64 $fetched
  br label %next

next:
  %ahead.share = phi ptr [ %ahead.0, %some ], [ %ahead, %told ]
  %share = atomicrmw add ptr %taken.at, i64 1 monotonic
  %is.there = icmp ult i64 %share, %shares
  br i1 %is.there, label %begin, label %look

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
  %ahead.far = call ptr @preparation(ptr %own, i64 %which, ptr %ahead)
  %is.far = icmp ugt ptr %ahead.far, %ahead.end
  %ahead.next = select i1 %is.far, ptr %ahead, ptr %ahead.far
  %which.next = add i64 %which, 1
  br label %more

told:
  %before = atomicrmw add ptr %made.at, i64 1 acq_rel
  br label %next

look:
  %made = load atomic i64, ptr %made.at acquire, align 8
  %are.made = icmp eq i64 %made, %shares
  br i1 %are.made, label %done, label %wait

wait:
  $pause
  br label %look

done:
  ret void
}

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
