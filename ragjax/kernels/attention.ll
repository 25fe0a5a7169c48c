; Attention to keys and values in buffers: a piece is all queries of one sequence and head. Only keys from the
; first to the last that a query may see are read. Where new ones come with the queries, a piece begins by putting
; those of its head into the buffers; heads that share them put the same there.

; In this order: queries, heads, heads of keys, keys; query, key, value, the scales of both, mask, scale, out; heads
; in a row of the queries, which new keys and values may follow, and where in the buffers these begin.
%Call = type { i64, i64, i64, i64, ptr, ptr, ptr, ptr, ptr, ptr, ptr, ptr, i64, ptr }

define { i64, i64, i64 } @plan(ptr %frame, ptr %call) alwaysinline {
  %query.buffer = call ptr @argument(ptr %frame, i64 0)
  %query = call ptr @data(ptr %query.buffer)
  %batch = call i64 @dimension(ptr %query.buffer, i64 0)
  %queries = call i64 @dimension(ptr %query.buffer, i64 1)
  %row.heads = call i64 @dimension(ptr %query.buffer, i64 2)
  %mask.buffer = call ptr @argument(ptr %frame, i64 1)
  %mask = call ptr @data(ptr %mask.buffer)
  %scale.buffer = call ptr @argument(ptr %frame, i64 2)
  %scale.at = call ptr @data(ptr %scale.buffer)
  %key.buffer = call ptr @$buffers(ptr %frame, i64 $key)
  %key = call ptr @data(ptr %key.buffer)
  %shared = call i64 @dimension.from.end(ptr %key.buffer, i64 3)
  %keys = call i64 @dimension.from.end(ptr %key.buffer, i64 2)
  %value.buffer = call ptr @$buffers(ptr %frame, i64 $value)
  %value = call ptr @data(ptr %value.buffer)
$scales
  ${holds}%new = shl i64 %shared, 1
  ${holds}%heads = sub i64 %row.heads, %new
  ${holds}%at.buffer = call ptr @argument(ptr %frame, i64 5)
  ${holds}%at = call ptr @data(ptr %at.buffer)
  %out.buffer = call ptr @result(ptr %frame, i64 0)
  %out = call ptr @data(ptr %out.buffer)
  %call.0 = insertvalue %Call zeroinitializer, i64 %queries, 0
  %call.1 = insertvalue %Call %call.0, i64 $heads, 1
  %call.2 = insertvalue %Call %call.1, i64 %shared, 2
  %call.3 = insertvalue %Call %call.2, i64 %keys, 3
  %call.4 = insertvalue %Call %call.3, ptr %query, 4
  %call.5 = insertvalue %Call %call.4, ptr %key, 5
  %call.6 = insertvalue %Call %call.5, ptr %value, 6
  %call.7 = insertvalue %Call %call.6, ptr %key.scales, 7
  %call.8 = insertvalue %Call %call.7, ptr %value.scales, 8
  %call.9 = insertvalue %Call %call.8, ptr %mask, 9
  %call.10 = insertvalue %Call %call.9, ptr %scale.at, 10
  %call.11 = insertvalue %Call %call.10, ptr %out, 11
  %call.12 = insertvalue %Call %call.11, i64 %row.heads, 12
  %call.13 = insertvalue %Call %call.12, ptr $at, 13
  store %Call %call.13, ptr %call
  %pieces = mul i64 %batch, $heads
  %plan.0 = insertvalue { i64, i64, i64 } zeroinitializer, i64 %pieces, 0
  ; A thread is worth asking for some 8 thousand products.
  %rows = mul i64 %queries, $heads
  %each = mul i64 %rows, %keys
  %all = mul i64 %each, %batch
  %products = mul i64 %all, $head
  %useful = lshr i64 %products, 13
  %few = call i64 @llvm.umin.i64(i64 %useful, i64 %pieces)
  %plan = insertvalue { i64, i64, i64 } %plan.0, i64 %few, 1
  ret { i64, i64, i64 } %plan
}

define void @piece(ptr %call, i64 %piece) {
entry:
  %all = load %Call, ptr %call
  %queries = extractvalue %Call %all, 0
  %heads = extractvalue %Call %all, 1
  %shared = extractvalue %Call %all, 2
  %keys = extractvalue %Call %all, 3
  %query.0 = extractvalue %Call %all, 4
  %key.0 = extractvalue %Call %all, 5
  %value.0 = extractvalue %Call %all, 6
  %key.scales.0 = extractvalue %Call %all, 7
  %value.scales.0 = extractvalue %Call %all, 8
  %mask.0 = extractvalue %Call %all, 9
  %scale.at = extractvalue %Call %all, 10
  %scale = load float, ptr %scale.at
  %out.0 = extractvalue %Call %all, 11
  %row.heads = extractvalue %Call %all, 12
  %sequence = udiv i64 %piece, %heads
  %head = urem i64 %piece, %heads
  %group = udiv i64 %heads, %shared
  %of.keys = udiv i64 %head, %group
  %sequence.first = mul i64 %sequence, %shared
  %buffer = add i64 %sequence.first, %of.keys
  %before = mul i64 %buffer, %keys
  %held = mul i64 %before, $head
  %key = getelementptr $element, ptr %key.0, i64 %held
  %value = getelementptr $element, ptr %value.0, i64 %held
  %head.size = mul i64 %keys, $head
  %key.behind = getelementptr $element, ptr %key, i64 %head.size
  %key.scales = getelementptr float, ptr %key.scales.0, i64 %before
  %value.scales = getelementptr float, ptr %value.scales.0, i64 %before
  %filled = add i64 %keys, $lanes
  %bytes = shl i64 %filled, 2
  %weights = call ptr @malloc(i64 %bytes)
  %first.query = mul i64 %sequence, %queries
  ${holds}call void @hold(ptr %call, i64 %sequence, i64 %of.keys, ptr %key, ptr %value)
  br label %queries.on

queries.on:
  %query = phi i64 [ 0, %entry ], [ %query.next, %queries.on ]
  %row = add i64 %first.query, %query
  %mask.first = mul i64 %row, %keys
  %mask = getelementptr i8, ptr %mask.0, i64 %mask.first
  %first = call i64 @first.seen(ptr %mask, i64 %keys)
  %end = call i64 @end.of.seen(ptr %mask, i64 %first, i64 %keys)
  %query.before = mul i64 %row, %row.heads
  %query.this = add i64 %query.before, %head
  %query.first = mul i64 %query.this, $head
  %query.at = getelementptr float, ptr %query.0, i64 %query.first
  %out.before = mul i64 %row, %heads
  %this = add i64 %out.before, %head
  %at = mul i64 %this, $head
  %out.at = getelementptr float, ptr %out.0, i64 %at
  ; A step has one query, or a few that read nearly the same; those of a prompt find keys in the cache.
  %fetches = icmp eq i64 %query, 0
  call void @attend(ptr %query.at, ptr %key, ptr %value, ptr %key.behind, ptr %key.scales, ptr %value.scales,
                    ptr %mask, float %scale, i64 %first, i64 %end, i1 %fetches, ptr %weights, ptr %out.at)
  %query.next = add i64 %query, 1
  %query.more = icmp ult i64 %query.next, %queries
  br i1 %query.more, label %queries.on, label %done

done:
  call void @free(ptr %weights)
  ret void
}

; Puts the new keys and values of a sequence and head of keys where they begin, or as far on as they fit. Threads whose
; heads share them may do so at a time: all put the same, and each before it reads.
define void @hold(ptr %call, i64 %sequence, i64 %of.keys, ptr %key, ptr %value) {
entry:
  %all = load %Call, ptr %call
  %queries = extractvalue %Call %all, 0
  %heads = extractvalue %Call %all, 1
  %shared = extractvalue %Call %all, 2
  %keys = extractvalue %Call %all, 3
  %query = extractvalue %Call %all, 4
  %row.heads = extractvalue %Call %all, 12
  %at.all = extractvalue %Call %all, 13
  %at.at = getelementptr i32, ptr %at.all, i64 %sequence
  %at.asked = load i32, ptr %at.at
  %at.wide = sext i32 %at.asked to i64
  %at.last = sub i64 %keys, %queries
  %at.low = call i64 @llvm.smin.i64(i64 %at.wide, i64 %at.last)
  %at = call i64 @llvm.smax.i64(i64 %at.low, i64 0)
  %first.row = mul i64 %sequence, %queries
  %of.row = add i64 %heads, %of.keys
  %apart = mul i64 %shared, $head
  br label %one

one:
  %new = phi i64 [ 0, %entry ], [ %new.next, %one ]
  %row = add i64 %first.row, %new
  %before = mul i64 %row, %row.heads
  %this = add i64 %before, %of.row
  %from = mul i64 %this, $head
  %key.from = getelementptr float, ptr %query, i64 %from
  %value.from = getelementptr float, ptr %key.from, i64 %apart
  %place = add i64 %at, %new
  %to = mul i64 %place, $head
  %key.to = getelementptr float, ptr %key, i64 %to
  %value.to = getelementptr float, ptr %value, i64 %to
  call void @llvm.memcpy.p0.p0.i64(ptr %key.to, ptr %key.from, i64 $head_bytes, i1 false)
  call void @llvm.memcpy.p0.p0.i64(ptr %value.to, ptr %value.from, i64 $head_bytes, i1 false)
  %new.next = add i64 %new, 1
  %new.more = icmp ult i64 %new.next, %queries
  br i1 %new.more, label %one, label %done

done:
  ret void
}

; The first key that may be seen, or how many keys there are.
define i64 @first.seen(ptr %mask, i64 %keys) {
entry:
  br label %eight

eight:
  %from = phi i64 [ 0, %entry ], [ %from.next, %eight.hidden ]
  %from.next = add i64 %from, 8
  %is.whole = icmp ule i64 %from.next, %keys
  br i1 %is.whole, label %eight.look, label %one

eight.look:
  %eight.at = getelementptr i8, ptr %mask, i64 %from
  %seen.eight = load i64, ptr %eight.at, align 1
  %none.of.eight = icmp eq i64 %seen.eight, 0
  br i1 %none.of.eight, label %eight.hidden, label %one

eight.hidden:
  br label %eight

one:
  %key = phi i64 [ %from, %eight ], [ %from, %eight.look ], [ %key.next, %one.look ]
  %is.key = icmp ult i64 %key, %keys
  br i1 %is.key, label %one.look, label %found

one.look:
  %key.at = getelementptr i8, ptr %mask, i64 %key
  %seen = load i8, ptr %key.at
  %is.hidden = icmp eq i8 %seen, 0
  %key.next = add i64 %key, 1
  br i1 %is.hidden, label %one, label %found

found:
  ret i64 %key
}

; One past the last key that may be seen, or the first.
define i64 @end.of.seen(ptr %mask, i64 %first, i64 %keys) {
entry:
  br label %eight

eight:
  %to = phi i64 [ %keys, %entry ], [ %to.next, %eight.hidden ]
  %to.next = sub i64 %to, 8
  %is.whole = icmp sge i64 %to.next, %first
  br i1 %is.whole, label %eight.look, label %one

eight.look:
  %eight.at = getelementptr i8, ptr %mask, i64 %to.next
  %seen.eight = load i64, ptr %eight.at, align 1
  %none.of.eight = icmp eq i64 %seen.eight, 0
  br i1 %none.of.eight, label %eight.hidden, label %one

eight.hidden:
  br label %eight

one:
  %end = phi i64 [ %to, %eight ], [ %to, %eight.look ], [ %end.next, %one.look ]
  %is.key = icmp ugt i64 %end, %first
  br i1 %is.key, label %one.look, label %found

one.look:
  %end.next = sub i64 %end, 1
  %key.at = getelementptr i8, ptr %mask, i64 %end.next
  %seen = load i8, ptr %key.at
  %is.hidden = icmp eq i8 %seen, 0
  br i1 %is.hidden, label %one, label %found

found:
  ret i64 %end
}

; softmax(scale * q K') V of one query and head over keys from the first to before the end. What is hidden among
; them scores -inf, whose exponential is 0 unless no other score is more. While keys are read, values may be fetched
; into the cache, and while these are read the next head's keys: each alone is too short for the memory to catch up.
define void @attend(ptr noalias %query, ptr noalias %key, ptr noalias %value, ptr %key.behind, ptr noalias %key.scales,
                    ptr noalias %value.scales, ptr noalias %mask, float %scale, i64 %first, i64 %end,
                    i1 %fetches, ptr noalias %weights, ptr noalias %out) {
entry:
$load_query
  %some = icmp ult i64 %first, %end
  br i1 %some, label %score, label %none

none:
$store_zeros
  ret void

score:
  %key.now = phi i64 [ %first, %entry ], [ %key.next, %score.on ]
  %highest = phi float [ $hidden, %entry ], [ %higher, %score.on ]
  %key.first = mul i64 %key.now, $head
  %key.at = getelementptr $element, ptr %key, i64 %key.first
  br i1 %fetches, label %score.ahead, label %score.on

score.ahead:
  %value.ahead = getelementptr $element, ptr %value, i64 %key.first
$fetch_value
  br label %score.on

score.on:
$load_key
$multiply
  %product = call reassoc float @llvm.vector.reduce.fadd.v${lanes}f32(float 0.0, <$lanes x float> %sum.$last)
  %scaled = fmul float %product, %scale
$scale_key
  %mask.at = getelementptr i8, ptr %mask, i64 %key.now
  %seen = load i8, ptr %mask.at
  %is.seen = icmp ne i8 %seen, 0
  %score.now = select i1 %is.seen, float $scaled_key, float $hidden
  %place = sub i64 %key.now, %first
  %score.at = getelementptr float, ptr %weights, i64 %place
  store float %score.now, ptr %score.at
  %is.higher = fcmp ogt float %score.now, %highest
  %higher = select i1 %is.higher, float %score.now, float %highest
  %key.next = add i64 %key.now, 1
  %key.more = icmp ult i64 %key.next, %end
  br i1 %key.more, label %score, label %exponents

; What fills up the last vector weighs nothing.
exponents:
  %count = sub i64 %end, %first
  %rest.at = getelementptr float, ptr %weights, i64 %count
  store <$lanes x float> $all_hidden, ptr %rest.at, align 4
  %highest.first = insertelement <$lanes x float> poison, float %higher, i32 0
  %highest.all = shufflevector <$lanes x float> %highest.first, <$lanes x float> poison, <$lanes x i32> zeroinitializer
  br label %exponent

exponent:
  %from = phi i64 [ 0, %exponents ], [ %from.next, %exponent ]
  %total = phi <$lanes x float> [ zeroinitializer, %exponents ], [ %total.next, %exponent ]
  %these.at = getelementptr float, ptr %weights, i64 %from
  %these = load <$lanes x float>, ptr %these.at, align 4
  %below = fsub <$lanes x float> %these, %highest.all
$exp
  store <$lanes x float> %exp, ptr %these.at, align 4
  %total.next = fadd <$lanes x float> %total, %exp
  %from.next = add i64 %from, $lanes
  %from.more = icmp ult i64 %from.next, %count
  br i1 %from.more, label %exponent, label %totals

totals:
  %whole = call reassoc float @llvm.vector.reduce.fadd.v${lanes}f32(float 0.0, <$lanes x float> %total.next)
  %whole.first = insertelement <$lanes x float> poison, float %whole, i32 0
  %whole.all = shufflevector <$lanes x float> %whole.first, <$lanes x float> poison, <$lanes x i32> zeroinitializer
  br label %mix

mix:
  %value.now = phi i64 [ %first, %totals ], [ %value.next, %mix.on ]
$carry
  %value.place = sub i64 %value.now, %first
  %weight.at = getelementptr float, ptr %weights, i64 %value.place
  %weight = load float, ptr %weight.at
$scale_weight
  %weight.first = insertelement <$lanes x float> poison, float $scaled_weight, i32 0
  %weight.all = shufflevector <$lanes x float> %weight.first, <$lanes x float> poison, <$lanes x i32> zeroinitializer
  %value.first = mul i64 %value.now, $head
  %value.at = getelementptr $element, ptr %value, i64 %value.first
  br i1 %fetches, label %mix.ahead, label %mix.on

mix.ahead:
  %key.ahead = getelementptr $element, ptr %key.behind, i64 %value.first
$fetch_key
  br label %mix.on

mix.on:
$load_value
$mix
  %value.next = add i64 %value.now, 1
  %value.more = icmp ult i64 %value.next, %end
  br i1 %value.more, label %mix, label %last

last:
$divide
$store_mixed
  ret void
}

declare i64 @llvm.smin.i64(i64, i64)
declare i64 @llvm.smax.i64(i64, i64)
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
declare float @llvm.vector.reduce.fadd.v${lanes}f32(float, <$lanes x float>)
declare <$lanes x float> @llvm.fmuladd.v${lanes}f32(<$lanes x float>, <$lanes x float>, <$lanes x float>)
declare <$lanes x float> @llvm.rint.v${lanes}f32(<$lanes x float>)
