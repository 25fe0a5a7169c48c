; Rows of floats, which become integers, times a matrix in quads; where it is asked for, of the norms of those rows, and
; an activation of that and a bias, added to something. A piece is as many rows as a tile takes, times a panel.

; In this order: steps, outputs, rows; x, quads, sums over the inputs of each output, scales, out; the integers,
; and of each row what they are multiples of; the bias, and what is added to; the norm's scale, epsilon, and bias.
%Call = type { i64, i64, i64, ptr, ptr, ptr, ptr, ptr, ptr, ptr, ptr, ptr, ptr, ptr, ptr }

; Multiplies so many rows of integers with a panel, by how many they are.
@tiles = private constant [$tile_count x ptr] [ $tiles ]

define { i64, i64, i64 } @plan(ptr %frame, ptr %call) alwaysinline {
  %x.buffer = call ptr @argument(ptr %frame, i64 0)
  %x = call ptr @data(ptr %x.buffer)
  %quads.buffer = call ptr @argument(ptr %frame, i64 1)
  %quads = call ptr @data(ptr %quads.buffer)
  %panels = call i64 @dimension(ptr %quads.buffer, i64 0)
  %steps = call i64 @dimension(ptr %quads.buffer, i64 1)
  %sums.buffer = call ptr @argument(ptr %frame, i64 2)
  %sums = call ptr @data(ptr %sums.buffer)
  %scale.buffer = call ptr @argument(ptr %frame, i64 3)
  %scale = call ptr @data(ptr %scale.buffer)
  %out.buffer = call ptr @result(ptr %frame, i64 0)
  %out = call ptr @data(ptr %out.buffer)
  %rows = call i64 @dimension(ptr %out.buffer, i64 0)
  %outputs = call i64 @dimension(ptr %out.buffer, i64 1)
  %call.0 = insertvalue %Call zeroinitializer, i64 %steps, 0
  %call.1 = insertvalue %Call %call.0, i64 %outputs, 1
  %call.2 = insertvalue %Call %call.1, i64 %rows, 2
  %call.3 = insertvalue %Call %call.2, ptr %x, 3
  %call.4 = insertvalue %Call %call.3, ptr %quads, 4
  %call.5 = insertvalue %Call %call.4, ptr %sums, 5
  %call.6 = insertvalue %Call %call.5, ptr %scale, 6
  %call.7 = insertvalue %Call %call.6, ptr %out, 7
  store %Call %call.7, ptr %call
  ${active}%bias.buffer = call ptr @argument(ptr %frame, i64 4)
  ${active}%bias.data = call ptr @data(ptr %bias.buffer)
  ${active}%bias.place = getelementptr %Call, ptr %call, i32 0, i32 10
  ${active}store ptr %bias.data, ptr %bias.place
  ${adds}%added.buffer = call ptr @argument(ptr %frame, i64 5)
  ${adds}%added.data = call ptr @data(ptr %added.buffer)
  ${adds}%added.place = getelementptr %Call, ptr %call, i32 0, i32 11
  ${adds}store ptr %added.data, ptr %added.place
$norm_operands
  %tiles = call i64 @tiles.of(i64 %rows)
  ; Those of a panel follow one another: a thread's next tile finds the panel in the cache.
  %pieces = mul i64 %panels, %tiles
  %useful = lshr i64 %pieces, 2
  %row.bytes = mul i64 %steps, $row_bytes
  %row.room = add i64 %row.bytes, 4
  %rows.room = mul i64 %rows, %row.room
  ; The norms, in floats.
  %norm.all = mul i64 %rows, $norm_bytes
  %norm.room = mul i64 %steps, %norm.all
  %room = add i64 %rows.room, %norm.room
  %plan.0 = insertvalue { i64, i64, i64 } zeroinitializer, i64 %pieces, 0
  %plan.1 = insertvalue { i64, i64, i64 } %plan.0, i64 %useful, 1
  %plan = insertvalue { i64, i64, i64 } %plan.1, i64 %room, 2
  ret { i64, i64, i64 } %plan
}

define i64 @tiles.of(i64 %rows) alwaysinline {
  %above = add i64 %rows, $most_less_1
  %tiles = udiv i64 %above, $most
  ret i64 %tiles
}

; Where the integers come, and what they are multiples of.
define i64 @prepare(ptr %call, ptr %room) {
  %steps.at = getelementptr %Call, ptr %call, i32 0, i32 0
  %steps = load i64, ptr %steps.at
  %rows.at = getelementptr %Call, ptr %call, i32 0, i32 2
  %rows = load i64, ptr %rows.at
  %row.bytes = mul i64 %steps, $row_bytes
  %bytes = mul i64 %rows, %row.bytes
  %units = getelementptr i8, ptr %room, i64 %bytes
  %integers.at = getelementptr %Call, ptr %call, i32 0, i32 8
  store ptr %room, ptr %integers.at
  %units.at = getelementptr %Call, ptr %call, i32 0, i32 9
  store ptr %units, ptr %units.at
  ret i64 %rows
}

; The panels.
define { ptr, i64, i64 } @reads(ptr %call) alwaysinline {
  %all = load %Call, ptr %call
  %steps = extractvalue %Call %all, 0
  %outputs = extractvalue %Call %all, 1
  %quads = extractvalue %Call %all, 4
  %size = mul i64 %steps, $step_bytes
  %reads = call { ptr, i64, i64 } @read.of.panels(ptr %quads, i64 %size, i64 %outputs, i64 $width)
  ret { ptr, i64, i64 } %reads
}

; Makes the integers of a row, whose largest becomes $largest, and fetches as many lines as it has vectors.
define ptr @preparation(ptr %call, i64 %number, ptr %ahead) {
entry:
  %all = load %Call, ptr %call
  %steps = extractvalue %Call %all, 0
  %x.0 = extractvalue %Call %all, 3
  %integers = extractvalue %Call %all, 8
  %units.0 = extractvalue %Call %all, 9
  %row.bytes = mul i64 %steps, $row_bytes
  %inputs = shl i64 %steps, 2
  %before = mul i64 %number, %inputs
  %x.row = getelementptr float, ptr %x.0, i64 %before
  %to.first = mul i64 %number, %row.bytes
  %to = getelementptr i8, ptr %integers, i64 %to.first
  call void @claim(ptr %to, i64 %row.bytes)
  ${normed}%rows = extractvalue %Call %all, 2
  ${normed}%norm.scale = extractvalue %Call %all, 12
  ${normed}%norm.epsilon = extractvalue %Call %all, 13
  ${normed}%norm.bias = extractvalue %Call %all, 14
  ${normed}%norm.rows = getelementptr float, ptr %units.0, i64 %rows
  ${normed}%norm.row = getelementptr float, ptr %norm.rows, i64 %before
  ${normed}%norm.bytes = shl i64 %inputs, 2
  ${normed}call void @claim(ptr %norm.row, i64 %norm.bytes)
  ${normed}call void @norm.row(ptr %x.row, ptr %norm.row, i64 %inputs, ptr %norm.scale, ptr %norm.epsilon, ptr %norm.bias)
  br label %measure

measure:
  %seen = phi i64 [ 0, %entry ], [ %seen.next, %measure ]
  %most = phi <16 x i32> [ zeroinitializer, %entry ], [ %most.next, %measure ]
  %seen.at = getelementptr float, ptr $row, i64 %seen
  %given = load <16 x i32>, ptr %seen.at, align 4
  ; Without their signs, floats are in the order of their bits, and what is no number is above all.
  %size = and <16 x i32> %given, $unsigned
  %most.next = call <16 x i32> @llvm.umax.v16i32(<16 x i32> %most, <16 x i32> %size)
  %seen.next = add i64 %seen, 16
  %measure.more = icmp ult i64 %seen.next, %inputs
  br i1 %measure.more, label %measure, label %measured

measured:
  %largest.bits = call i32 @llvm.vector.reduce.umax.v16i32(<16 x i32> %most.next)
  %largest = bitcast i32 %largest.bits to float
  %unit = fdiv float %largest, $largest
  %unit.at = getelementptr float, ptr %units.0, i64 %number
  store float %unit, ptr %unit.at, align 4
  %unit.inverse = fdiv float 1.0, %unit
  ; Of a row of nothing, or of next to nothing, all becomes 0.
  %is.nothing = fcmp oeq float %unit.inverse, $infinity
  %inverse = select i1 %is.nothing, float 0.0, float %unit.inverse
  %unit.first = insertelement <16 x float> poison, float %unit, i32 0
  %unit.all = shufflevector <16 x float> %unit.first, <16 x float> poison, <16 x i32> zeroinitializer
  %inverse.first = insertelement <16 x float> poison, float %inverse, i32 0
  %inverses = shufflevector <16 x float> %inverse.first, <16 x float> poison, <16 x i32> zeroinitializer
  br label %round

round:
  %done = phi i64 [ 0, %measured ], [ %done.next, %round ]
  %from = getelementptr float, ptr $row, i64 %done
  %value = load <16 x float>, ptr %from, align 4
  ; The quotient, rounded as a division rounds it (Markstein, 1990), at a third of its time.
  %near = fmul <16 x float> %value, %inverses
  %near.minus = fneg <16 x float> %near
  %left = call <16 x float> @llvm.fma.v16f32(<16 x float> %near.minus, <16 x float> %unit.all, <16 x float> %value)
  %units = call <16 x float> @llvm.fma.v16f32(<16 x float> %left, <16 x float> %inverses, <16 x float> %near)
  ; Beyond 2^23 floats are integers, rounded to even: their bits count on from those of 1.5 * 2^23.
  %shifted = fadd <16 x float> %units, $shift
  %bits = bitcast <16 x float> %shifted to <16 x i32>
  %integer = add <16 x i32> %bits, $unshift
$store
  %line.far = shl i64 %done, 2
  %line.at = getelementptr i8, ptr %ahead, i64 %line.far
  call void @llvm.prefetch.p0(ptr %line.at, i32 0, i32 2, i32 1)
  %done.next = add i64 %done, 16
  %round.more = icmp ult i64 %done.next, %inputs
  br i1 %round.more, label %round, label %end

end:
  %row.lines = shl i64 %inputs, 2
  %ahead.next = getelementptr i8, ptr %ahead, i64 %row.lines
  ret ptr %ahead.next
}

; Fetches lines of the cache to be written to, all at a time: what is written waits for them one by one.
define void @claim(ptr %from, i64 %bytes) alwaysinline {
entry:
  %end = getelementptr i8, ptr %from, i64 %bytes
  br label %along

along:
  %at = phi ptr [ %from, %entry ], [ %at.next, %along ]
  call void @llvm.prefetch.p0(ptr %at, i32 1, i32 3, i32 1)
  %at.next = getelementptr i8, ptr %at, i64 $line
  %is.more = icmp ult ptr %at.next, %end
  br i1 %is.more, label %along, label %done

done:
  ret void
}

define void @piece(ptr %call, i64 %piece) {
entry:
  %all = load %Call, ptr %call
  %steps = extractvalue %Call %all, 0
  %outputs = extractvalue %Call %all, 1
  %rows = extractvalue %Call %all, 2
  %quads = extractvalue %Call %all, 4
  %all.sums = extractvalue %Call %all, 5
  %all.scales = extractvalue %Call %all, 6
  %out = extractvalue %Call %all, 7
  %integers = extractvalue %Call %all, 8
  %all.biases = extractvalue %Call %all, 10
  %all.added = extractvalue %Call %all, 11
  %units = extractvalue %Call %all, 9
  %tiles = call i64 @tiles.of(i64 %rows)
  %panel = udiv i64 %piece, %tiles
  %number = urem i64 %piece, %tiles
  %row = mul i64 %number, $most
  %rows.left = sub i64 %rows, %row
  %these = call i64 @llvm.umin.i64(i64 %rows.left, i64 $most)
  %row.bytes = mul i64 %steps, $row_bytes
  %size = mul i64 %steps, $step_bytes
  %first = mul i64 %panel, %size
  %from = getelementptr i8, ptr %quads, i64 %first
  %column = mul i64 %panel, $width
  %sums.at = getelementptr i32, ptr %all.sums, i64 %column
  %scale.at = getelementptr half, ptr %all.scales, i64 %column
  %bias.at = getelementptr float, ptr %all.biases, i64 %column
  %to = getelementptr float, ptr %out, i64 %column
  %left = sub i64 %outputs, %column
  %is.whole = icmp uge i64 %left, $width
  %left.bytes = shl i64 %left, 2
  ; While several tiles go by, each fetches a part of the next panel; a full one alone fetches what is near.
  ; Fewer rows are not ahead of the memory, and fetch what they begin with.
  %is.few = icmp ult i64 %rows, $most
  %part = udiv i64 $step_bytes, %tiles
  %each = select i1 %is.few, i64 0, i64 %part
  %tile.bytes = mul i64 %each, %steps
  %is.one = icmp eq i64 %tiles, 1
  %near = call i64 @llvm.umin.i64(i64 %size, i64 $near)
  %distance = select i1 %is.one, i64 %near, i64 %size
  %ahead.0 = getelementptr i8, ptr %from, i64 %distance
  %ahead.far = mul i64 %tile.bytes, %number
  %ahead = getelementptr i8, ptr %ahead.0, i64 %ahead.far
  %found = alloca [$aside x i32], align 64
  ; Where the last panel goes, which has more columns than there are outputs.
  %aside = alloca [$width x float], align 64
  ; And where comes what its outputs are added to.
  ${adds}%brought = alloca [$width x float], align 64
  ${adds}%added.column = getelementptr float, ptr %all.added, i64 %column
$columns
  %row.first = mul i64 %row, %outputs
  %to.row = getelementptr float, ptr %to, i64 %row.first
  ${adds}%added.row = getelementptr float, ptr %added.column, i64 %row.first
  br label %claim

claim:
  %claimed = phi i64 [ 0, %entry ], [ %claimed.next, %claim ]
  %claimed.far = mul i64 %claimed, %outputs
  %claimed.to = getelementptr float, ptr %to.row, i64 %claimed.far
  call void @claim(ptr %claimed.to, i64 $width_bytes)
  ${adds}%claimed.added = getelementptr float, ptr %added.row, i64 %claimed.far
  ${adds}call void @llvm.prefetch.p0(ptr %claimed.added, i32 0, i32 3, i32 1)
  ${adds}%claimed.behind = getelementptr i8, ptr %claimed.added, i64 $line
  ${adds}call void @llvm.prefetch.p0(ptr %claimed.behind, i32 0, i32 3, i32 1)
  %claimed.next = add i64 %claimed, 1
  %claimed.more = icmp ult i64 %claimed.next, %these
  br i1 %claimed.more, label %claim, label %multiply

multiply:
  %tile.rows = mul i64 %these, $halves
  %tile.at = getelementptr ptr, ptr @tiles, i64 %tile.rows
  %tile = load ptr, ptr %tile.at
  %integers.first = mul i64 %row, %row.bytes
  %integers.here = getelementptr i8, ptr %integers, i64 %integers.first
  call void %tile(ptr %integers.here, ptr %from, ptr %found, i64 %steps, i64 $width, ptr %ahead, i64 %each)
  br label %one.row

one.row:
  %which = phi i64 [ 0, %multiply ], [ %which.next, %one.done ]
  %row.here = add i64 %row, %which
  %unit.at = getelementptr float, ptr %units, i64 %row.here
  %unit = load float, ptr %unit.at, align 4
  %unit.first = insertelement <16 x float> poison, float %unit, i32 0
  %unit.all = shufflevector <16 x float> %unit.first, <16 x float> poison, <16 x i32> zeroinitializer
  %found.first = mul i64 %which, $found_row
  %found.at = getelementptr i32, ptr %found, i64 %found.first
  %to.first = mul i64 %row.here, %outputs
  %to.here = getelementptr float, ptr %to, i64 %to.first
  %put = select i1 %is.whole, ptr %to.here, ptr %aside
  ${adds}%added.here = getelementptr float, ptr %added.column, i64 %to.first
  ${adds}%add = select i1 %is.whole, ptr %added.here, ptr %brought
  ${adds}br i1 %is.whole, label %combine, label %bring

  ${adds}bring:
  ${adds}call void @llvm.memcpy.p0.p0.i64(ptr %brought, ptr %added.here, i64 %left.bytes, i1 false)
  ${adds}br label %combine

  ${adds}combine:
$combine
  br i1 %is.whole, label %one.done, label %copy

copy:
  call void @llvm.memcpy.p0.p0.i64(ptr %to.here, ptr %aside, i64 %left.bytes, i1 false)
  br label %one.done

one.done:
  %which.next = add i64 %which, 1
  %which.more = icmp ult i64 %which.next, %these
  br i1 %which.more, label %one.row, label %done

done:
  ret void
}

declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
declare <16 x i32> @llvm.umax.v16i32(<16 x i32>, <16 x i32>)
declare i32 @llvm.vector.reduce.umax.v16i32(<16 x i32>)
declare <16 x float> @llvm.fma.v16f32(<16 x float>, <16 x float>, <16 x float>)
