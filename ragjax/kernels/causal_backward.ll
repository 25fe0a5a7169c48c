; A piece is a head. It takes a block of keys after the other, and of each the blocks of queries that may see some
; of them: what these have to do with each other is made, used, and forgotten.

; Mask, scale, query, key, value, gradient of out, logarithms of sums, what the softmax takes off; gradients of
; query, key and value.
define { i64, i64, i64 } @plan(ptr %frame, ptr %call) alwaysinline {
  %sizes = call %Call @sizes(ptr %frame)
  %mask = call ptr @given(ptr %frame, i64 0)
  %scale = call ptr @given(ptr %frame, i64 1)
  %query = call ptr @given(ptr %frame, i64 2)
  %key = call ptr @given(ptr %frame, i64 3)
  %value = call ptr @given(ptr %frame, i64 4)
  %gradient = call ptr @given(ptr %frame, i64 5)
  %log.sums = call ptr @given(ptr %frame, i64 6)
  %shared = call ptr @given(ptr %frame, i64 7)
  %to.query = call ptr @made(ptr %frame, i64 0)
  %to.key = call ptr @made(ptr %frame, i64 1)
  %to.value = call ptr @made(ptr %frame, i64 2)
  %call.0 = insertvalue %Call %sizes, ptr %mask, 4, 0
  %call.1 = insertvalue %Call %call.0, ptr %scale, 4, 1
  %call.2 = insertvalue %Call %call.1, ptr %query, 4, 2
  %call.3 = insertvalue %Call %call.2, ptr %key, 4, 3
  %call.4 = insertvalue %Call %call.3, ptr %value, 4, 4
  %call.5 = insertvalue %Call %call.4, ptr %gradient, 4, 5
  %call.6 = insertvalue %Call %call.5, ptr %log.sums, 4, 6
  %call.7 = insertvalue %Call %call.6, ptr %shared, 4, 7
  %call.8 = insertvalue %Call %call.7, ptr %to.query, 4, 8
  %call.9 = insertvalue %Call %call.8, ptr %to.key, 4, 9
  %call.10 = insertvalue %Call %call.9, ptr %to.value, 4, 10
  store %Call %call.10, ptr %call
  %batch = extractvalue %Call %sizes, 0
  %heads = extractvalue %Call %sizes, 1
  %pieces = mul i64 %batch, %heads
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
  %gradient = extractvalue %Call %all, 4, 5
  %log.sums = extractvalue %Call %all, 4, 6
  %shared = extractvalue %Call %all, 4, 7
  %to.query = extractvalue %Call %all, 4, 8
  %to.key = extractvalue %Call %all, 4, 9
  %to.value = extractvalue %Call %all, 4, 10
  %scale = load float, ptr %scale.at
  %scales = call $vector @everywhere(float %scale)
  %stride = mul i64 %heads, $head
  %head = urem i64 %piece, %heads
  %sequence = udiv i64 %piece, %heads
  %weights = alloca [$square x float], align 64
  %slopes = alloca [$square x float], align 64
  %keys.turned = alloca [$panels x float], align 64
  %values.turned = alloca [$panels x float], align 64
  %keys = alloca [$panels x float], align 64
  %queries = alloca [$panels x float], align 64
  %gradients = alloca [$panels x float], align 64
  br label %block

block:
  %key.first = phi i64 [ 0, %entry ], [ %key.end, %block.done ]
  %key.far = add i64 %key.first, $keys
  %key.end = call i64 @llvm.umin.i64(i64 %key.far, i64 %length)
  %wide = sub i64 %key.end, %key.first
  %is.later = icmp ne i64 %key.first, 0
  %key.at = call ptr @row.of(ptr %key, %Call %all, i64 %sequence, i64 %head, i64 %key.first)
  %value.at = call ptr @row.of(ptr %value, %Call %all, i64 %sequence, i64 %head, i64 %key.first)
  %to.key.at = call ptr @row.of(ptr %to.key, %Call %all, i64 %sequence, i64 %head, i64 %key.first)
  %to.value.at = call ptr @row.of(ptr %to.value, %Call %all, i64 %sequence, i64 %head, i64 %key.first)
  call void @copy.columns(ptr %key.at, i64 %stride, i64 $head, i64 %wide, ptr %keys.turned)
  call void @copy.columns(ptr %value.at, i64 %stride, i64 $head, i64 %wide, ptr %values.turned)
  call void @copy.lines(ptr %key.at, i64 %stride, i64 %wide, i64 $head, ptr %keys)
  br label %against

against:
  %first = phi i64 [ %key.first, %block ], [ %end, %against.done ]
  %far = add i64 %first, $keys
  %end = call i64 @llvm.umin.i64(i64 %far, i64 %length)
  %rows = sub i64 %end, %first
  %is.further = icmp ne i64 %first, %key.first
  %query.at = call ptr @row.of(ptr %query, %Call %all, i64 %sequence, i64 %head, i64 %first)
  %gradient.at = call ptr @row.of(ptr %gradient, %Call %all, i64 %sequence, i64 %head, i64 %first)
  %to.query.at = call ptr @row.of(ptr %to.query, %Call %all, i64 %sequence, i64 %head, i64 %first)
  call void @multiply(ptr %query.at, i64 %stride, ptr %keys.turned, i64 $head, ptr %weights, i64 $keys, i64 %rows,
                      i64 %wide, i1 false)
  call void @multiply(ptr %gradient.at, i64 %stride, ptr %values.turned, i64 $head, ptr %slopes, i64 $keys,
                      i64 %rows, i64 %wide, i1 false)
  br label %differ

differ:
  %row = phi i64 [ %first, %against ], [ %row.next, %row.done ]
  %weights.at = phi ptr [ %weights, %against ], [ %weights.next, %row.done ]
  %slopes.at = phi ptr [ %slopes, %against ], [ %slopes.next, %row.done ]
  %mask.row = call ptr @mask.of(ptr %mask, %Call %all, i64 %sequence, i64 %row)
  %mask.at = getelementptr i8, ptr %mask.row, i64 %key.first
  %log.sum.at = call ptr @number.of(ptr %log.sums, %Call %all, i64 %sequence, i64 %head, i64 %row)
  %log.sum = load float, ptr %log.sum.at
  %log.sums.all = call $vector @everywhere(float %log.sum)
  %shared.at = call ptr @number.of(ptr %shared, %Call %all, i64 %sequence, i64 %head, i64 %row)
  %shared.row = load float, ptr %shared.at
  %shared.all = call $vector @everywhere(float %shared.row)
  br label %some

some:
  %n = phi i64 [ 0, %differ ], [ %n.next, %some ]
  %n.at = getelementptr float, ptr %weights.at, i64 %n
  %n.given = load $vector, ptr %n.at, align 4
  %n.scaled = fmul $vector %n.given, %scales
  %n.far = fsub $vector %n.scaled, %log.sums.all
  %n.seen = call $mask @seen(ptr %mask.at, i64 %n)
  %n.below = select $mask %n.seen, $vector %n.far, $vector $hidden
  %n.weight = call $vector @exponential($vector %n.below)
  store $vector %n.weight, ptr %n.at, align 4
  %n.slope.at = getelementptr float, ptr %slopes.at, i64 %n
  %n.slope = load $vector, ptr %n.slope.at, align 4
  %n.off = fsub $vector %n.slope, %shared.all
  %n.weighted = fmul $vector %n.weight, %n.off
  %n.made = fmul $vector %n.weighted, %scales
  store $vector %n.made, ptr %n.slope.at, align 4
  %n.next = add i64 %n, $lanes
  %n.more = icmp ult i64 %n.next, %wide
  br i1 %n.more, label %some, label %row.done

row.done:
  %row.next = add i64 %row, 1
  %weights.next = getelementptr float, ptr %weights.at, i64 $keys
  %slopes.next = getelementptr float, ptr %slopes.at, i64 $keys
  %rows.more = icmp ult i64 %row.next, %end
  br i1 %rows.more, label %differ, label %spread

spread:
  call void @copy.lines(ptr %gradient.at, i64 %stride, i64 %rows, i64 $head, ptr %gradients)
  call void @multiply.columns(ptr %weights, i64 $keys, ptr %gradients, i64 %rows, ptr %to.value.at, i64 %stride,
                              i64 %wide, i64 $head, i1 %is.further)
  call void @copy.lines(ptr %query.at, i64 %stride, i64 %rows, i64 $head, ptr %queries)
  call void @multiply.columns(ptr %slopes, i64 $keys, ptr %queries, i64 %rows, ptr %to.key.at, i64 %stride,
                              i64 %wide, i64 $head, i1 %is.further)
  call void @multiply(ptr %slopes, i64 $keys, ptr %keys, i64 %wide, ptr %to.query.at, i64 %stride, i64 %rows,
                      i64 $head, i1 %is.later)
  br label %against.done

against.done:
  %is.more = icmp ult i64 %end, %length
  br i1 %is.more, label %against, label %block.done

block.done:
  %blocks.more = icmp ult i64 %key.end, %length
  br i1 %blocks.more, label %block, label %done

done:
  ret void
}
