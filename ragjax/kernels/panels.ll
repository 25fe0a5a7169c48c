; Rows of x times a matrix in panels: a piece is all rows times one panel.

%Call = type { i64, i64, i64, ptr, ptr, ptr }                         ; steps, outputs, rows, x, panels, out

; Multiplies so many rows with a panel, by how many they are.
@tiles = private constant [$tile_count x ptr] [ $tiles ]

define { i64, i64, i64 } @plan(ptr %frame, ptr %call) alwaysinline {
  %x.buffer = call ptr @argument(ptr %frame, i64 0)
  %x = call ptr @data(ptr %x.buffer)
  %weights.buffer = call ptr @argument(ptr %frame, i64 1)
  %weights = call ptr @data(ptr %weights.buffer)
  %panels = call i64 @dimension(ptr %weights.buffer, i64 0)
  %steps = call i64 @dimension(ptr %weights.buffer, i64 1)
  %out.buffer = call ptr @result(ptr %frame, i64 0)
  %out = call ptr @data(ptr %out.buffer)
  %rows = call i64 @dimension(ptr %out.buffer, i64 0)
  %outputs = call i64 @dimension(ptr %out.buffer, i64 1)
  %call.0 = insertvalue %Call zeroinitializer, i64 %steps, 0
  %call.1 = insertvalue %Call %call.0, i64 %outputs, 1
  %call.2 = insertvalue %Call %call.1, i64 %rows, 2
  %call.3 = insertvalue %Call %call.2, ptr %x, 3
  %call.4 = insertvalue %Call %call.3, ptr %weights, 4
  %call.5 = insertvalue %Call %call.4, ptr %out, 5
  store %Call %call.5, ptr %call
  %useful = lshr i64 %panels, 2
  %plan.0 = insertvalue { i64, i64, i64 } zeroinitializer, i64 %panels, 0
  %plan = insertvalue { i64, i64, i64 } %plan.0, i64 %useful, 1
  ret { i64, i64, i64 } %plan
}

; The panels.
define { ptr, i64, i64 } @reads(ptr %call) {
  %all = load %Call, ptr %call
  %steps = extractvalue %Call %all, 0
  %outputs = extractvalue %Call %all, 1
  %weights = extractvalue %Call %all, 4
  %size = mul i64 %steps, $step_bytes
  %reads = call { ptr, i64, i64 } @read.of.panels(ptr %weights, i64 %size, i64 %outputs, i64 $width)
  ret { ptr, i64, i64 } %reads
}

define void @piece(ptr %call, i64 %panel) {
entry:
  %all = load %Call, ptr %call
  %steps = extractvalue %Call %all, 0
  %outputs = extractvalue %Call %all, 1
  %rows = extractvalue %Call %all, 2
  %x = extractvalue %Call %all, 3
  %weights = extractvalue %Call %all, 4
  %out = extractvalue %Call %all, 5
  %size = mul i64 %steps, $row
  %first = mul i64 %panel, %size
  %from = getelementptr $weights, ptr %weights, i64 %first
  %column = mul i64 %panel, $width
  %to = getelementptr float, ptr %out, i64 %column
  %left = sub i64 %outputs, %column
  %is.whole = icmp uge i64 %left, $width
  %stride = select i1 %is.whole, i64 %outputs, i64 $width
  %left.bytes = shl i64 %left, 2
  ; While several tiles go by, each fetches a part of the next panel. One alone is not ahead of the memory: it
  ; fetches again and again what it begins with, which costs nothing.
  %above = add i64 %rows, $most_less_1
  %tiles = udiv i64 %above, $most
  %is.one = icmp eq i64 %tiles, 1
  %part = udiv i64 $step_bytes, %tiles
  %each = select i1 %is.one, i64 0, i64 %part
  %tile.bytes = mul i64 %each, %steps
  %panel.bytes = mul i64 %steps, $step_bytes
  %distance = select i1 %is.one, i64 0, i64 %panel.bytes
  %ahead.0 = getelementptr i8, ptr %from, i64 %distance
  ; Where the last panel goes, which has more columns than there are outputs.
  %aside = alloca [$aside x float]
  br label %some.rows

some.rows:
  %row = phi i64 [ 0, %entry ], [ %row.next, %some.done ]
  %ahead = phi ptr [ %ahead.0, %entry ], [ %ahead.next, %some.done ]
  %rows.left = sub i64 %rows, %row
  %these = call i64 @llvm.umin.i64(i64 %rows.left, i64 $most)
  %tile.at = getelementptr ptr, ptr @tiles, i64 %these
  %tile = load ptr, ptr %tile.at
  %x.first = mul i64 %row, %steps
  %x.here = getelementptr $x, ptr %x, i64 %x.first
  %to.first = mul i64 %row, %outputs
  %to.here = getelementptr float, ptr %to, i64 %to.first
  %put = select i1 %is.whole, ptr %to.here, ptr %aside
  call void %tile(ptr %x.here, ptr %from, ptr %put, i64 %steps, i64 %stride, ptr %ahead, i64 %each)
  br i1 %is.whole, label %some.done, label %copy

copy:
  %which = phi i64 [ 0, %some.rows ], [ %which.next, %copy ]
  %copy.first = mul i64 %which, $width
  %copy.from = getelementptr float, ptr %aside, i64 %copy.first
  %copy.column = mul i64 %which, %outputs
  %copy.to = getelementptr float, ptr %to.here, i64 %copy.column
  call void @llvm.memcpy.p0.p0.i64(ptr %copy.to, ptr %copy.from, i64 %left.bytes, i1 false)
  %which.next = add i64 %which, 1
  %copy.more = icmp ult i64 %which.next, %these
  br i1 %copy.more, label %copy, label %some.done

some.done:
  %row.next = add i64 %row, %these
  %ahead.next = getelementptr i8, ptr %ahead, i64 %tile.bytes
  %is.more = icmp ult i64 %row.next, %rows
  br i1 %is.more, label %some.rows, label %done

done:
  ret void
}

declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
