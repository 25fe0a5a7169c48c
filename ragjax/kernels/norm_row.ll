; A row over the root of its mean square, times a scale. For LayerNorm its mean is taken off before, and a bias added
; behind; what that needs is taken out of the text where it is not asked for.

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

define void @norm.row(ptr %from, ptr %to, i64 %width, ptr %scale, ptr %epsilon.at, ptr %bias) {
entry:
  %epsilon = load float, ptr %epsilon.at
  %count = uitofp i64 %width to float
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
