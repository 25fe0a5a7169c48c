; Rows, each over the root of its mean square, times a scale: a piece is a row. For LayerNorm a row's mean is taken
; off before, and a bias added behind; what that needs is taken out of the text where it is not asked for.

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

; A row's mean, in all lanes.
define $vector @mean(ptr %from, i64 %width, float %count) {
entry:
  br label %sum

sum:
  %i = phi i64 [ 0, %entry ], [ %i.next, %sum ]
  %sums = phi $vector [ zeroinitializer, %entry ], [ %sums.more, %sum ]
  %i.at = getelementptr float, ptr %from, i64 %i
  %i.given = load $vector, ptr %i.at, align 4
  %sums.more = fadd $vector %sums, %i.given
  %i.next = add i64 %i, $lanes
  %i.more = icmp ult i64 %i.next, %width
  br i1 %i.more, label %sum, label %summed

summed:
  %sum.all = call reassoc float @llvm.vector.reduce.fadd.v${lanes}f32(float 0.0, $vector %sums.more)
  %mean = fdiv float %sum.all, %count
  %means = call $vector @everywhere(float %mean)
  ret $vector %means
}

define void @piece(ptr %call, i64 %row) {
entry:
  %all = load %Call, ptr %call
  %width = extractvalue %Call %all, 0
  %x = extractvalue %Call %all, 1
  %scale = extractvalue %Call %all, 2
  %epsilon.at = extractvalue %Call %all, 3
  %bias = extractvalue %Call %all, 4
  %out = extractvalue %Call %all, 5
  %epsilon = load float, ptr %epsilon.at
  %count = uitofp i64 %width to float
  %before = mul i64 %row, %width
  %from = getelementptr float, ptr %x, i64 %before
  %to = getelementptr float, ptr %out, i64 %before
  ${centred}%means = call $vector @mean(ptr %from, i64 %width, float %count)
  br label %measure

measure:
  %j = phi i64 [ 0, %entry ], [ %j.next, %measure ]
  %squares = phi $vector [ zeroinitializer, %entry ], [ %squares.more, %measure ]
  %j.at = getelementptr float, ptr %from, i64 %j
  %j.given = load $vector, ptr %j.at, align 4
  %j.apart = fsub $vector %j.given, $means
  %squares.more = call $vector @llvm.fmuladd.v${lanes}f32($vector %j.apart, $vector %j.apart, $vector %squares)
  %j.next = add i64 %j, $lanes
  %j.more = icmp ult i64 %j.next, %width
  br i1 %j.more, label %measure, label %measured

measured:
  %square.all = call reassoc float @llvm.vector.reduce.fadd.v${lanes}f32(float 0.0, $vector %squares.more)
  %square = fdiv float %square.all, %count
  %above = fadd float %square, %epsilon
  %root = call float @llvm.sqrt.f32(float %above)
  %inverse = fdiv float 1.0, %root
  %inverses = call $vector @everywhere(float %inverse)
  br label %make

make:
  %k = phi i64 [ 0, %measured ], [ %k.next, %make ]
  %k.at = getelementptr float, ptr %from, i64 %k
  %k.given = load $vector, ptr %k.at, align 4
  %k.apart = fsub $vector %k.given, $means
  %k.normal = fmul $vector %k.apart, %inverses
  %k.scale.at = getelementptr float, ptr %scale, i64 %k
  %k.scale = load $vector, ptr %k.scale.at, align 4
  %k.scaled = fmul $vector %k.normal, %k.scale
  ${centred}%k.bias.at = getelementptr float, ptr %bias, i64 %k
  ${centred}%k.bias = load $vector, ptr %k.bias.at, align 4
  ${centred}%k.made = fadd $vector %k.scaled, %k.bias
  %k.to = getelementptr float, ptr %to, i64 %k
  store $vector $made, ptr %k.to, align 4
  %k.next = add i64 %k, $lanes
  %k.more = icmp ult i64 %k.next, %width
  br i1 %k.more, label %make, label %end

end:
  ret void
}

declare float @llvm.vector.reduce.fadd.v${lanes}f32(float, $vector)
declare $vector @llvm.fmuladd.v${lanes}f32($vector, $vector, $vector)
declare float @llvm.sqrt.f32(float)
