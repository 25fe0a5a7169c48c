; Where the highest value of each row stands, the first where several do: a piece is a row.

%Call = type { i64, ptr, ptr }                                        ; columns, values, out

define { i64, i64, i64 } @plan(ptr %frame, ptr %call) alwaysinline {
  %values.buffer = call ptr @argument(ptr %frame, i64 0)
  %values = call ptr @data(ptr %values.buffer)
  %rows = call i64 @dimension(ptr %values.buffer, i64 0)
  %columns = call i64 @dimension(ptr %values.buffer, i64 1)
  %out.buffer = call ptr @result(ptr %frame, i64 0)
  %out = call ptr @data(ptr %out.buffer)
  %call.0 = insertvalue %Call zeroinitializer, i64 %columns, 0
  %call.1 = insertvalue %Call %call.0, ptr %values, 1
  %call.2 = insertvalue %Call %call.1, ptr %out, 2
  store %Call %call.2, ptr %call
  ; A thread is worth waking for some 32 thousand values.
  %all = mul i64 %rows, %columns
  %useful = lshr i64 %all, 15
  %few = call i64 @llvm.umin.i64(i64 %useful, i64 %rows)
  %plan.0 = insertvalue { i64, i64, i64 } zeroinitializer, i64 %rows, 0
  %plan = insertvalue { i64, i64, i64 } %plan.0, i64 %few, 1
  ret { i64, i64, i64 } %plan
}

; Each lane keeps the highest of what it sees, and where the vector began that held it.
define void @piece(ptr %call, i64 %row) {
entry:
  %all = load %Call, ptr %call
  %columns = extractvalue %Call %all, 0
  %values.0 = extractvalue %Call %all, 1
  %out = extractvalue %Call %all, 2
  %before = mul i64 %row, %columns
  %values = getelementptr float, ptr %values.0, i64 %before
  %last = sub i64 %columns, $lanes
  br label %along

along:
  %start = phi i64 [ 0, %entry ], [ %start.next, %along ]
  %highest = phi $vector [ $lowest, %entry ], [ %highest.next, %along ]
  %began = phi $integers [ zeroinitializer, %entry ], [ %began.next, %along ]
  %at = getelementptr float, ptr %values, i64 %start
  %seen = load $vector, ptr %at, align 4
  %is.higher = fcmp ogt $vector %seen, %highest
  %highest.next = select $mask %is.higher, $vector %seen, $vector %highest
  %start.small = trunc i64 %start to i32
  %start.first = insertelement $integers poison, i32 %start.small, i32 0
  %starts = shufflevector $integers %start.first, $integers poison, $integers zeroinitializer
  %began.next = select $mask %is.higher, $integers %starts, $integers %began
  %start.far = add i64 %start, $lanes
  ; The last vector ends with the row. What another lane saw before is the same place once more.
  %start.next = call i64 @llvm.umin.i64(i64 %start.far, i64 %last)
  %is.more = icmp ult i64 %start, %last
  br i1 %is.more, label %along, label %end

end:
  %places = add $integers %began.next, $steps
  %top = call float @llvm.vector.reduce.fmax.v${lanes}f32($vector %highest.next)
  %top.first = insertelement $vector poison, float %top, i32 0
  %tops = shufflevector $vector %top.first, $vector poison, $integers zeroinitializer
  %is.top = fcmp oeq $vector %highest.next, %tops
  %of.tops = select $mask %is.top, $integers %places, $integers $far
  %place = call i32 @llvm.vector.reduce.umin.v${lanes}i32($integers %of.tops)
  %out.at = getelementptr i32, ptr %out, i64 %row
  store i32 %place, ptr %out.at
  ret void
}

declare float @llvm.vector.reduce.fmax.v${lanes}f32($vector)
declare i32 @llvm.vector.reduce.umin.v${lanes}i32($integers)
