; Norms of rows: a piece is a row.

; In this order: width of a row; x, scale, epsilon, bias; out.
%Call = type { i64, ptr, ptr, ptr, ptr, ptr }

define { i64, i64, i64 } @plan(ptr %frame, ptr %call) alwaysinline {
  %x.buffer = call ptr @argument(ptr %frame, i64 0)
  %x = call ptr @data(ptr %x.buffer)
  %rows = call i64 @dimension(ptr %x.buffer, i64 0)
  %width = call i64 @dimension(ptr %x.buffer, i64 1)
  %scale.buffer = call ptr @argument(ptr %frame, i64 1)
  %scale = call ptr @data(ptr %scale.buffer)
  %epsilon.buffer = call ptr @argument(ptr %frame, i64 2)
  %epsilon = call ptr @data(ptr %epsilon.buffer)
  %out.buffer = call ptr @result(ptr %frame, i64 0)
  %out = call ptr @data(ptr %out.buffer)
  %call.0 = insertvalue %Call zeroinitializer, i64 %width, 0
  %call.1 = insertvalue %Call %call.0, ptr %x, 1
  %call.2 = insertvalue %Call %call.1, ptr %scale, 2
  %call.3 = insertvalue %Call %call.2, ptr %epsilon, 3
  %call.4 = insertvalue %Call %call.3, ptr %out, 5
  store %Call %call.4, ptr %call
  ${centred}%bias.buffer = call ptr @argument(ptr %frame, i64 3)
  ${centred}%bias = call ptr @data(ptr %bias.buffer)
  ${centred}%bias.at = getelementptr %Call, ptr %call, i32 0, i32 4
  ${centred}store ptr %bias, ptr %bias.at
  ; Of so few rows one thread is done before another would have come.
  %plan.0 = insertvalue { i64, i64, i64 } zeroinitializer, i64 %rows, 0
  %plan = insertvalue { i64, i64, i64 } %plan.0, i64 1, 1
  ret { i64, i64, i64 } %plan
}

define void @piece(ptr %call, i64 %row) {
  %all = load %Call, ptr %call
  %width = extractvalue %Call %all, 0
  %x = extractvalue %Call %all, 1
  %scale = extractvalue %Call %all, 2
  %epsilon = extractvalue %Call %all, 3
  %bias = extractvalue %Call %all, 4
  %out = extractvalue %Call %all, 5
  %before = mul i64 %row, %width
  %from = getelementptr float, ptr %x, i64 %before
  %to = getelementptr float, ptr %out, i64 %before
  call void @norm.row(ptr %from, ptr %to, i64 %width, ptr %scale, ptr %epsilon, ptr %bias)
  ret void
}
