; A piece is some queries of a head. It takes a block of keys after the other, and keeps of each query the highest
; score so far and the sum of the exponentials below it, by which what was mixed before is made smaller where a
; higher one comes.

; Mask, scale, query, key, value; out, highest scores, sums.
define { i64, i64, i64 } @plan(ptr %frame, ptr %call) alwaysinline {
  %sizes = call %Call @sizes(ptr %frame)
  %mask = call ptr @given(ptr %frame, i64 0)
  %scale = call ptr @given(ptr %frame, i64 1)
  %query = call ptr @given(ptr %frame, i64 2)
  %key = call ptr @given(ptr %frame, i64 3)
  %value = call ptr @given(ptr %frame, i64 4)
  %out = call ptr @made(ptr %frame, i64 0)
  %highest = call ptr @made(ptr %frame, i64 1)
  %sums = call ptr @made(ptr %frame, i64 2)
  %call.0 = insertvalue %Call %sizes, ptr %mask, 4, 0
  %call.1 = insertvalue %Call %call.0, ptr %scale, 4, 1
  %call.2 = insertvalue %Call %call.1, ptr %query, 4, 2
  %call.3 = insertvalue %Call %call.2, ptr %key, 4, 3
  %call.4 = insertvalue %Call %call.3, ptr %value, 4, 4
  %call.5 = insertvalue %Call %call.4, ptr %out, 4, 5
  %call.6 = insertvalue %Call %call.5, ptr %highest, 4, 6
  %call.7 = insertvalue %Call %call.6, ptr %sums, 4, 7
  store %Call %call.7, ptr %call
  %batch = extractvalue %Call %sizes, 0
  %heads = extractvalue %Call %sizes, 1
  %length = extractvalue %Call %sizes, 2
  %above = add i64 %length, $queries_less_1
  %parts = udiv i64 %above, $queries
  %all.heads = mul i64 %batch, %heads
  %pieces = mul i64 %all.heads, %parts
  %plan.0 = insertvalue { i64, i64, i64 } zeroinitializer, i64 %pieces, 0
  %plan = insertvalue { i64, i64, i64 } %plan.0, i64 %pieces, 1
  ret { i64, i64, i64 } %plan
}

define void @piece(ptr %call, i64 %piece) {
entry:
  %all = load %Call, ptr %call
  %heads = extractvalue %Call %all, 1
  %length = extractvalue %Call %all, 2
  %mask = extractvalue %Call %all, 4, 0
  %scale.at = extractvalue %Call %all, 4, 1
  %query = extractvalue %Call %all, 4, 2
  %key = extractvalue %Call %all, 4, 3
  %value = extractvalue %Call %all, 4, 4
  %out = extractvalue %Call %all, 4, 5
  %highest = extractvalue %Call %all, 4, 6
  %sums = extractvalue %Call %all, 4, 7
  %scale = load float, ptr %scale.at
  %scales = call $vector @everywhere(float %scale)
  %stride = mul i64 %heads, $head
  %above = add i64 %length, $queries_less_1
  %parts = udiv i64 %above, $queries
  %part = urem i64 %piece, %parts
  %number = udiv i64 %piece, %parts
  %head = urem i64 %number, %heads
  %sequence = udiv i64 %number, %heads
  %first = mul i64 %part, $queries
  %far = add i64 %first, $queries
  %end = call i64 @llvm.umin.i64(i64 %far, i64 %length)
  %scores = alloca [$scores x float], align 64
  %keys = alloca [$panels x float], align 64
  %values = alloca [$panels x float], align 64
  br label %block

block:
  %key.first = phi i64 [ 0, %entry ], [ %key.end, %softened ]
  %key.far = add i64 %key.first, $keys
  %key.end = call i64 @llvm.umin.i64(i64 %key.far, i64 %end)
  %wide = sub i64 %key.end, %key.first
  %is.later = icmp ne i64 %key.first, 0
  ; Queries before a block of keys see none of them.
  %row.first = call i64 @llvm.umax.i64(i64 %first, i64 %key.first)
  %rows = sub i64 %end, %row.first
  %key.at = call ptr @row.of(ptr %key, %Call %all, i64 %sequence, i64 %head, i64 %key.first)
  %value.at = call ptr @row.of(ptr %value, %Call %all, i64 %sequence, i64 %head, i64 %key.first)
  %query.at = call ptr @row.of(ptr %query, %Call %all, i64 %sequence, i64 %head, i64 %row.first)
  %out.at = call ptr @row.of(ptr %out, %Call %all, i64 %sequence, i64 %head, i64 %row.first)
  call void @copy.columns(ptr %key.at, i64 %stride, i64 $head, i64 %wide, ptr %keys)
  call void @multiply(ptr %query.at, i64 %stride, ptr %keys, i64 $head, ptr %scores, i64 $keys, i64 %rows,
                      i64 %wide, i1 false)
  br label %soften

soften:
  %row = phi i64 [ %row.first, %block ], [ %row.next, %row.done ]
  %scores.at = phi ptr [ %scores, %block ], [ %scores.next, %row.done ]
  %mask.row = call ptr @mask.of(ptr %mask, %Call %all, i64 %sequence, i64 %row)
  %mask.at = getelementptr i8, ptr %mask.row, i64 %key.first
  %highest.at = call ptr @number.of(ptr %highest, %Call %all, i64 %sequence, i64 %head, i64 %row)
  %sum.at = call ptr @number.of(ptr %sums, %Call %all, i64 %sequence, i64 %head, i64 %row)
  %highest.kept = load float, ptr %highest.at
  %highest.before = select i1 %is.later, float %highest.kept, float $lowest
  %sum.kept = load float, ptr %sum.at
  %sum.before = select i1 %is.later, float %sum.kept, float 0.0
  br label %measure

measure:
  %m = phi i64 [ 0, %soften ], [ %m.next, %measure ]
  %most = phi $vector [ $lowest_all, %soften ], [ %most.next, %measure ]
  %m.at = getelementptr float, ptr %scores.at, i64 %m
  %m.given = load $vector, ptr %m.at, align 4
  %m.scaled = fmul $vector %m.given, %scales
  %m.seen = call $mask @seen(ptr %mask.at, i64 %m)
  %m.score = select $mask %m.seen, $vector %m.scaled, $vector $hidden
  store $vector %m.score, ptr %m.at, align 4
  %m.higher = fcmp ogt $vector %m.score, %most
  %most.next = select $mask %m.higher, $vector %m.score, $vector %most
  %m.next = add i64 %m, $lanes
  %m.more = icmp ult i64 %m.next, %wide
  br i1 %m.more, label %measure, label %measured

measured:
  %top = call float @llvm.vector.reduce.fmax.v${lanes}f32($vector %most.next)
  %is.higher = fcmp ogt float %top, %highest.before
  %highest.now = select i1 %is.higher, float %top, float %highest.before
  store float %highest.now, ptr %highest.at
  %tops = call $vector @everywhere(float %highest.now)
  %before.all = call $vector @everywhere(float %highest.before)
  %fallen = fsub $vector %before.all, %tops
  %factors = call $vector @exponential($vector %fallen)
  %factor = extractelement $vector %factors, i64 0
  br label %sum

sum:
  %n = phi i64 [ 0, %measured ], [ %n.next, %sum ]
  %whole = phi $vector [ zeroinitializer, %measured ], [ %whole.next, %sum ]
  %n.at = getelementptr float, ptr %scores.at, i64 %n
  %n.score = load $vector, ptr %n.at, align 4
  %n.below = fsub $vector %n.score, %tops
  %n.weight = call $vector @exponential($vector %n.below)
  store $vector %n.weight, ptr %n.at, align 4
  %whole.next = fadd $vector %whole, %n.weight
  %n.next = add i64 %n, $lanes
  %n.more = icmp ult i64 %n.next, %wide
  br i1 %n.more, label %sum, label %summed

summed:
  %sum.new = call reassoc float @llvm.vector.reduce.fadd.v${lanes}f32(float 0.0, $vector %whole.next)
  %sum.less = fmul float %sum.before, %factor
  %sum.now = fadd float %sum.less, %sum.new
  store float %sum.now, ptr %sum.at
  %out.row = call ptr @row.of(ptr %out, %Call %all, i64 %sequence, i64 %head, i64 %row)
  %is.smaller = fcmp une float %factor, 1.0
  %is.mixed = and i1 %is.later, %is.smaller
  br i1 %is.mixed, label %lessen, label %row.done

lessen:
  %l = phi i64 [ 0, %summed ], [ %l.next, %lessen ]
  %l.at = getelementptr float, ptr %out.row, i64 %l
  %l.before = load $vector, ptr %l.at, align 4
  %l.less = fmul $vector %l.before, %factors
  store $vector %l.less, ptr %l.at, align 4
  %l.next = add i64 %l, $lanes
  %l.more = icmp ult i64 %l.next, $head
  br i1 %l.more, label %lessen, label %row.done

row.done:
  %row.next = add i64 %row, 1
  %scores.next = getelementptr float, ptr %scores.at, i64 $keys
  %rows.more = icmp ult i64 %row.next, %end
  br i1 %rows.more, label %soften, label %mix

mix:
  call void @copy.lines(ptr %value.at, i64 %stride, i64 %wide, i64 $head, ptr %values)
  call void @multiply(ptr %scores, i64 $keys, ptr %values, i64 %wide, ptr %out.at, i64 %stride, i64 %rows,
                      i64 $head, i1 %is.later)
  br label %softened

softened:
  %is.more = icmp ult i64 %key.end, %end
  br i1 %is.more, label %block, label %divide

divide:
  %d.row = phi i64 [ %first, %softened ], [ %d.row.next, %divided ]
  %d.sum.at = call ptr @number.of(ptr %sums, %Call %all, i64 %sequence, i64 %head, i64 %d.row)
  %d.sum = load float, ptr %d.sum.at
  ; Where a query sees nothing.
  %is.some = fcmp ogt float %d.sum, $tiny
  %d.total = select i1 %is.some, float %d.sum, float $tiny
  store float %d.total, ptr %d.sum.at
  %d.totals = call $vector @everywhere(float %d.total)
  %d.out = call ptr @row.of(ptr %out, %Call %all, i64 %sequence, i64 %head, i64 %d.row)
  br label %divide.row

divide.row:
  %d = phi i64 [ 0, %divide ], [ %d.next, %divide.row ]
  %d.at = getelementptr float, ptr %d.out, i64 %d
  %d.mixed = load $vector, ptr %d.at, align 4
  %d.done = fdiv $vector %d.mixed, %d.totals
  store $vector %d.done, ptr %d.at, align 4
  %d.next = add i64 %d, $lanes
  %d.more = icmp ult i64 %d.next, $head
  br i1 %d.more, label %divide.row, label %divided

divided:
  %d.row.next = add i64 %d.row, 1
  %d.rows.more = icmp ult i64 %d.row.next, %end
  br i1 %d.rows.more, label %divide, label %done

done:
  ret void
}
