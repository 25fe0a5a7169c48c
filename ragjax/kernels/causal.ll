; What attention to the keys up to a query's own and its backward pass have in common. A head's rows are as far
; apart in memory as all heads are wide.

; In this order: sequences, heads, rows of a sequence, and whether all have the same mask; then what is given
; and what is made, as @plan says.
%Call = type { i64, i64, i64, i1, [12 x ptr] }

define %Call @sizes(ptr %frame) alwaysinline {
  %query.buffer = call ptr @argument(ptr %frame, i64 2)
  %batch = call i64 @dimension(ptr %query.buffer, i64 0)
  %length = call i64 @dimension(ptr %query.buffer, i64 1)
  %heads = call i64 @dimension(ptr %query.buffer, i64 2)
  %mask.buffer = call ptr @argument(ptr %frame, i64 0)
  %masks = call i64 @dimension(ptr %mask.buffer, i64 0)
  %is.one = icmp eq i64 %masks, 1
  %call.0 = insertvalue %Call zeroinitializer, i64 %batch, 0
  %call.1 = insertvalue %Call %call.0, i64 %heads, 1
  %call.2 = insertvalue %Call %call.1, i64 %length, 2
  %call.3 = insertvalue %Call %call.2, i1 %is.one, 3
  ret %Call %call.3
}

define ptr @given(ptr %frame, i64 %which) alwaysinline {
  %buffer = call ptr @argument(ptr %frame, i64 %which)
  %data = call ptr @data(ptr %buffer)
  ret ptr %data
}

define ptr @made(ptr %frame, i64 %which) alwaysinline {
  %buffer = call ptr @result(ptr %frame, i64 %which)
  %data = call ptr @data(ptr %buffer)
  ret ptr %data
}

; Where a row of a head begins in an array [batch, rows, heads, width].
define ptr @row.of(ptr %array, %Call %all, i64 %sequence, i64 %head, i64 %row) alwaysinline {
  %heads = extractvalue %Call %all, 1
  %length = extractvalue %Call %all, 2
  %rows.before = mul i64 %sequence, %length
  %rows = add i64 %rows.before, %row
  %heads.before = mul i64 %rows, %heads
  %place = add i64 %heads.before, %head
  %first = mul i64 %place, $head
  %at = getelementptr float, ptr %array, i64 %first
  ret ptr %at
}

; Where the number that a row of a head has stands in an array [batch, heads, rows].
define ptr @number.of(ptr %array, %Call %all, i64 %sequence, i64 %head, i64 %row) alwaysinline {
  %heads = extractvalue %Call %all, 1
  %length = extractvalue %Call %all, 2
  %heads.before = mul i64 %sequence, %heads
  %lines = add i64 %heads.before, %head
  %rows.before = mul i64 %lines, %length
  %place = add i64 %rows.before, %row
  %at = getelementptr float, ptr %array, i64 %place
  ret ptr %at
}

; Which keys a row may see, one byte each.
define ptr @mask.of(ptr %mask, %Call %all, i64 %sequence, i64 %row) alwaysinline {
  %length = extractvalue %Call %all, 2
  %is.one = extractvalue %Call %all, 3
  %which = select i1 %is.one, i64 0, i64 %sequence
  %rows.before = mul i64 %which, %length
  %rows = add i64 %rows.before, %row
  %first = mul i64 %rows, %length
  %at = getelementptr i8, ptr %mask, i64 %first
  ret ptr %at
}

define $mask @seen(ptr %mask, i64 %key) alwaysinline {
  %at = getelementptr i8, ptr %mask, i64 %key
  %bytes = load $bytes, ptr %at, align 1
  %seen = icmp ne $bytes %bytes, zeroinitializer
  ret $mask %seen
}

declare float @llvm.vector.reduce.fmax.v${lanes}f32($vector)
declare float @llvm.vector.reduce.fadd.v${lanes}f32(float, $vector)
