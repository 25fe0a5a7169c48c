; x times y, both of float32, each of which may be given transposed: a piece is some rows times some columns. Of
; a block of inputs y is copied into panels, which stay in the cache while the rows go by.

; In this order: rows, columns, inputs; rows and columns of a piece, pieces side by side, inputs of a block; x, y,
; and where the sums go.
%Call = type { i64, i64, i64, i64, i64, i64, i64, ptr, ptr, ptr }

; The smallest number of equal parts that are no larger than so many, rounded up to a multiple.
define i64 @part(i64 %all, i64 %most, i64 %multiple) alwaysinline {
  %above = add i64 %all, %most
  %above.less = sub i64 %above, 1
  %parts = udiv i64 %above.less, %most
  %more = add i64 %all, %parts
  %more.less = sub i64 %more, 1
  %each = udiv i64 %more.less, %parts
  %each.above = add i64 %each, %multiple
  %each.less = sub i64 %each.above, 1
  %times = udiv i64 %each.less, %multiple
  %part = mul i64 %times, %multiple
  ret i64 %part
}

; The product of all dimensions but the last.
define i64 @rows.of(ptr %buffer) alwaysinline {
entry:
  %rank.at = getelementptr %Buffer, ptr %buffer, i32 0, i32 4
  %rank = load i64, ptr %rank.at
  %last = sub i64 %rank, 1
  br label %axes

axes:
  %axis = phi i64 [ 0, %entry ], [ %axis.next, %more ]
  %rows = phi i64 [ 1, %entry ], [ %rows.next, %more ]
  %is.axis = icmp ult i64 %axis, %last
  br i1 %is.axis, label %more, label %done

more:
  %size = call i64 @dimension(ptr %buffer, i64 %axis)
  %rows.next = mul i64 %rows, %size
  %axis.next = add i64 %axis, 1
  br label %axes

done:
  ret i64 %rows
}

define { i64, i64, i64 } @plan(ptr %frame, ptr %call) alwaysinline {
  %x.buffer = call ptr @argument(ptr %frame, i64 0)
  %x = call ptr @data(ptr %x.buffer)
  %inputs = call i64 $inputs
  %y.buffer = call ptr @argument(ptr %frame, i64 1)
  %y = call ptr @data(ptr %y.buffer)
  %out.buffer = call ptr @result(ptr %frame, i64 0)
  %out = call ptr @data(ptr %out.buffer)
  %rows = call i64 @rows.of(ptr %out.buffer)
  %columns = call i64 @dimension.from.end(ptr %out.buffer, i64 1)
  %across = call i64 @part(i64 %columns, i64 $columns, i64 $width)
  %beside.above = add i64 %columns, %across
  %beside.less = sub i64 %beside.above, 1
  %beside = udiv i64 %beside.less, %across
  ; Few pieces side by side are cut into more, for each thread to have some.
  %cuts.above = add i64 %beside, $pieces_less_1
  %cuts = udiv i64 %cuts.above, %beside
  %cut = udiv i64 %rows, %cuts
  %cut.least = call i64 @llvm.umax.i64(i64 %cut, i64 $least_rows)
  %cut.most = call i64 @llvm.umin.i64(i64 %cut.least, i64 $most_rows)
  %down = call i64 @part(i64 %rows, i64 %cut.most, i64 $tile)
  %deep = call i64 @part(i64 %inputs, i64 $deep, i64 $lanes)
  %call.0 = insertvalue %Call zeroinitializer, i64 %rows, 0
  %call.1 = insertvalue %Call %call.0, i64 %columns, 1
  %call.2 = insertvalue %Call %call.1, i64 %inputs, 2
  %call.3 = insertvalue %Call %call.2, i64 %down, 3
  %call.4 = insertvalue %Call %call.3, i64 %across, 4
  %call.5 = insertvalue %Call %call.4, i64 %beside, 5
  %call.6 = insertvalue %Call %call.5, i64 %deep, 6
  %call.7 = insertvalue %Call %call.6, ptr %x, 7
  %call.8 = insertvalue %Call %call.7, ptr %y, 8
  %call.9 = insertvalue %Call %call.8, ptr %out, 9
  store %Call %call.9, ptr %call
  %below.above = add i64 %rows, %down
  %below.less = sub i64 %below.above, 1
  %below = udiv i64 %below.less, %down
  %pieces = mul i64 %below, %beside
  %plan.0 = insertvalue { i64, i64, i64 } zeroinitializer, i64 %pieces, 0
  %plan = insertvalue { i64, i64, i64 } %plan.0, i64 %pieces, 1
  ret { i64, i64, i64 } %plan
}

define void @piece(ptr %call, i64 %piece) {
entry:
  %all = load %Call, ptr %call
  %rows = extractvalue %Call %all, 0
  %columns = extractvalue %Call %all, 1
  %inputs = extractvalue %Call %all, 2
  %down = extractvalue %Call %all, 3
  %across = extractvalue %Call %all, 4
  %beside = extractvalue %Call %all, 5
  %deep = extractvalue %Call %all, 6
  %x = extractvalue %Call %all, 7
  %y = extractvalue %Call %all, 8
  %out = extractvalue %Call %all, 9
  %place = urem i64 %piece, %beside
  %above = udiv i64 %piece, %beside
  %row.first = mul i64 %above, %down
  %row.far = add i64 %row.first, %down
  %column.first = mul i64 %place, %across
  %column.far = add i64 %column.first, %across
  %column.end = call i64 @llvm.umin.i64(i64 %column.far, i64 %columns)
  %row.most = call i64 @llvm.umin.i64(i64 %row.far, i64 $last_row)
  %row.end = call i64 @llvm.umin.i64(i64 %row.most, i64 %rows)
  %wide = sub i64 %column.end, %column.first
  %panels = alloca [$room x float], align 64
  %some = icmp ult i64 %row.first, %row.end
  br i1 %some, label %block, label %end

block:
  %input = phi i64 [ 0, %entry ], [ %input.end, %block.done ]
  %input.far = add i64 %input, %deep
  %input.end = call i64 @llvm.umin.i64(i64 %input.far, i64 %inputs)
  %steps = sub i64 %input.end, %input
  %is.further = icmp ne i64 %input, 0
  %adds = or i1 %is.further, $adds
  %is.last = icmp eq i64 %input.end, %inputs
$y_first
  %y.here = getelementptr float, ptr %y, i64 %y.first
  call void @copy(ptr %y.here, i64 $y_stride, i64 %steps, i64 %wide, ptr %panels)
  br label %some.rows

some.rows:
  %row = phi i64 [ %row.first, %block ], [ %row.next, %some.done ]
  %tiles.before = phi i64 [ 0, %block ], [ %tile.next, %some.done ]
  %rows.left = sub i64 %row.end, %row
$rows_taken
  %row.next = add i64 %row, %these
$x_first
  %x.here = getelementptr float, ptr %x, i64 %x.first
  %out.row = mul i64 %row, %columns
  br label %panel

panel:
  %column = phi i64 [ %column.first, %some.rows ], [ %column.next, %panel ]
  %tile.number = phi i64 [ %tiles.before, %some.rows ], [ %tile.next, %panel ]
  %done = sub i64 %column, %column.first
  %panel.first = mul i64 %done, %steps
  %panel.at = getelementptr float, ptr %panels, i64 %panel.first
  %out.first = add i64 %out.row, %column
  %out.at = getelementptr float, ptr %out, i64 %out.first
$ahead
  call void %tile(ptr %x.here, i64 $x_stride, ptr %panel.at, ptr %out.at, i64 %steps, i64 %columns, i1 %adds,
                  ptr %ahead, i64 %each)
  %column.next = add i64 %column, $width
  %tile.next = add i64 %tile.number, 1
  %panels.more = icmp ult i64 %column.next, %column.end
  br i1 %panels.more, label %panel, label %some.done

some.done:
  %rows.more = icmp ult i64 %row.next, %row.end
  br i1 %rows.more, label %some.rows, label %block.done

block.done:
  br i1 %is.last, label %end, label %block

end:
  ret void
}
