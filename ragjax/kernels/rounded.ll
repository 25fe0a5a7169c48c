; Rows of floats, which become integers, times a matrix in quads: a piece is all rows times one panel.

; In this order: steps, outputs, rows; x, quads, sums over the inputs of each output, scales, out; the integers,
; and of each row what they are multiples of.
%Call = type { i64, i64, i64, ptr, ptr, ptr, ptr, ptr, ptr, ptr }

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
  %useful = lshr i64 %panels, 2
  %row.bytes = mul i64 %steps, $row_bytes
  %row.room = add i64 %row.bytes, 4
  %room = mul i64 %rows, %row.room
  %plan.0 = insertvalue { i64, i64, i64 } zeroinitializer, i64 %panels, 0
  %plan.1 = insertvalue { i64, i64, i64 } %plan.0, i64 %useful, 1
  %plan = insertvalue { i64, i64, i64 } %plan.1, i64 %room, 2
  ret { i64, i64, i64 } %plan
}

; Makes the integers: a row's largest becomes $largest.
define void @prepare(ptr %call, ptr %room) {
entry:
  %steps.at = getelementptr %Call, ptr %call, i32 0, i32 0
  %steps = load i64, ptr %steps.at
  %rows.at = getelementptr %Call, ptr %call, i32 0, i32 2
  %rows = load i64, ptr %rows.at
  %x.at = getelementptr %Call, ptr %call, i32 0, i32 3
  %x.0 = load ptr, ptr %x.at
  %row.bytes = mul i64 %steps, $row_bytes
  %bytes = mul i64 %rows, %row.bytes
  %units.0 = getelementptr i8, ptr %room, i64 %bytes
  %integers.at = getelementptr %Call, ptr %call, i32 0, i32 8
  store ptr %room, ptr %integers.at
  %units.at = getelementptr %Call, ptr %call, i32 0, i32 9
  store ptr %units.0, ptr %units.at
  %inputs = shl i64 %steps, 2
  br label %row

row:
  %number = phi i64 [ 0, %entry ], [ %number.next, %row.done ]
  %before = mul i64 %number, %inputs
  %x = getelementptr float, ptr %x.0, i64 %before
  br label %measure

measure:
  %seen = phi i64 [ 0, %row ], [ %seen.next, %measure ]
  %most = phi <16 x float> [ zeroinitializer, %row ], [ %most.next, %measure ]
  %seen.at = getelementptr float, ptr %x, i64 %seen
  %given = load <16 x float>, ptr %seen.at, align 4
  %size = call <16 x float> @llvm.fabs.v16f32(<16 x float> %given)
  ; What is no number stays so.
  %most.next = call <16 x float> @llvm.maximum.v16f32(<16 x float> %most, <16 x float> %size)
  %seen.next = add i64 %seen, 16
  %measure.more = icmp ult i64 %seen.next, %inputs
  br i1 %measure.more, label %measure, label %measured

measured:
  %largest = call float @llvm.vector.reduce.fmaximum.v16f32(<16 x float> %most.next)
  %unit = fdiv float %largest, $largest
  %unit.at = getelementptr float, ptr %units.0, i64 %number
  store float %unit, ptr %unit.at, align 4
  %is.nothing = fcmp oeq float %unit, 0.0
  %divisor = select i1 %is.nothing, float 1.0, float %unit
  %divisor.first = insertelement <16 x float> poison, float %divisor, i32 0
  %divisors = shufflevector <16 x float> %divisor.first, <16 x float> poison, <16 x i32> zeroinitializer
  %to.first = mul i64 %number, %row.bytes
  %to = getelementptr i8, ptr %room, i64 %to.first
  br label %round

round:
  %done = phi i64 [ 0, %measured ], [ %done.next, %round ]
  %from = getelementptr float, ptr %x, i64 %done
  %value = load <16 x float>, ptr %from, align 4
  %units = fdiv <16 x float> %value, %divisors
  ; Beyond 2^23 floats are integers, rounded to even: their bits count on from those of 1.5 * 2^23.
  %shifted = fadd <16 x float> %units, $shift
  %bits = bitcast <16 x float> %shifted to <16 x i32>
  %integer = add <16 x i32> %bits, $unshift
$store
  %done.next = add i64 %done, 16
  %round.more = icmp ult i64 %done.next, %inputs
  br i1 %round.more, label %round, label %row.done

row.done:
  %number.next = add i64 %number, 1
  %rows.more = icmp ult i64 %number.next, %rows
  br i1 %rows.more, label %row, label %end

end:
  ret void
}

define void @piece(ptr %call, i64 %panel) {
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
  %units = extractvalue %Call %all, 9
  %row.bytes = mul i64 %steps, $row_bytes
  %size = mul i64 %steps, $step_bytes
  %first = mul i64 %panel, %size
  %from = getelementptr i8, ptr %quads, i64 %first
  %column = mul i64 %panel, $width
  %sums.at = getelementptr i32, ptr %all.sums, i64 %column
  %scale.at = getelementptr half, ptr %all.scales, i64 %column
  %to = getelementptr float, ptr %out, i64 %column
  %left = sub i64 %outputs, %column
  %is.whole = icmp uge i64 %left, $width
  %left.bytes = shl i64 %left, 2
  ; While several tiles go by, each fetches a part of the next panel; a full one alone fetches what is near.
  ; Fewer rows are not ahead of the memory, and fetch what they begin with.
  %above = add i64 %rows, $most_less_1
  %tiles = udiv i64 %above, $most
  %is.few = icmp ult i64 %rows, $most
  %part = udiv i64 $step_bytes, %tiles
  %each = select i1 %is.few, i64 0, i64 %part
  %tile.bytes = mul i64 %each, %steps
  %is.one = icmp eq i64 %tiles, 1
  %near = call i64 @llvm.umin.i64(i64 %size, i64 $near)
  %distance = select i1 %is.one, i64 %near, i64 %size
  %ahead.0 = getelementptr i8, ptr %from, i64 %distance
  %found = alloca [$aside x i32], align 64
  ; Where the last panel goes, which has more columns than there are outputs.
  %aside = alloca [$width x float], align 64
$columns
  br label %some.rows

some.rows:
  %row = phi i64 [ 0, %entry ], [ %row.end, %some.done ]
  %ahead = phi ptr [ %ahead.0, %entry ], [ %ahead.next, %some.done ]
  %rows.left = sub i64 %rows, %row
  %these = call i64 @llvm.umin.i64(i64 %rows.left, i64 $most)
  %row.end = add i64 %row, %these
  %tile.rows = mul i64 %these, $halves
  %tile.at = getelementptr ptr, ptr @tiles, i64 %tile.rows
  %tile = load ptr, ptr %tile.at
  %integers.first = mul i64 %row, %row.bytes
  %integers.here = getelementptr i8, ptr %integers, i64 %integers.first
  call void %tile(ptr %integers.here, ptr %from, ptr %found, i64 %steps, i64 $width, ptr %ahead, i64 %each)
  br label %one.row

one.row:
  %which = phi i64 [ 0, %some.rows ], [ %which.next, %one.done ]
  %number = add i64 %row, %which
  %unit.at = getelementptr float, ptr %units, i64 %number
  %unit = load float, ptr %unit.at, align 4
  %unit.first = insertelement <16 x float> poison, float %unit, i32 0
  %unit.all = shufflevector <16 x float> %unit.first, <16 x float> poison, <16 x i32> zeroinitializer
  %found.first = mul i64 %which, $found_row
  %found.at = getelementptr i32, ptr %found, i64 %found.first
  %to.first = mul i64 %number, %outputs
  %to.here = getelementptr float, ptr %to, i64 %to.first
  %put = select i1 %is.whole, ptr %to.here, ptr %aside
$combine
  br i1 %is.whole, label %one.done, label %copy

copy:
  call void @llvm.memcpy.p0.p0.i64(ptr %to.here, ptr %aside, i64 %left.bytes, i1 false)
  br label %one.done

one.done:
  %which.next = add i64 %which, 1
  %which.more = icmp ult i64 %which.next, %these
  br i1 %which.more, label %one.row, label %some.done

some.done:
  %ahead.next = getelementptr i8, ptr %ahead, i64 %tile.bytes
  %is.more = icmp ult i64 %row.end, %rows
  br i1 %is.more, label %some.rows, label %done

done:
  ret void
}

declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
declare <16 x float> @llvm.fabs.v16f32(<16 x float>)
declare <16 x float> @llvm.maximum.v16f32(<16 x float>, <16 x float>)
declare float @llvm.vector.reduce.fmaximum.v16f32(<16 x float>)
