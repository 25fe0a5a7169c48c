; Losses of rows of scores, and their gradient, which goes where the student's scores are: a piece is a row. What
; is known of a teacher is taken out of the text where there is none.

; In this order: columns, and how many of them are outcomes; scores of the student and the teacher, the row's
; target, what each of its losses counts; gradient, and what the losses are made of.
%Call = type { i64, ptr, ptr, ptr, ptr, ptr, ptr, ptr }

define { i64, i64, i64 } @plan(ptr %frame, ptr %call) alwaysinline {
  %targets.buffer = call ptr @argument(ptr %frame, i64 0)
  %targets = call ptr @data(ptr %targets.buffer)
  %counts.buffer = call ptr @argument(ptr %frame, i64 1)
  %counts = call ptr @data(ptr %counts.buffer)
  %outcomes.buffer = call ptr @argument(ptr %frame, i64 2)
  %outcomes.at = call ptr @data(ptr %outcomes.buffer)
  %student.buffer = call ptr @argument(ptr %frame, i64 3)
  %student = call ptr @data(ptr %student.buffer)
  %rows = call i64 @dimension(ptr %student.buffer, i64 0)
  %columns = call i64 @dimension(ptr %student.buffer, i64 1)
  %teacher.buffer = call ptr @argument(ptr %frame, i64 $teacher)
  %teacher = call ptr @data(ptr %teacher.buffer)
  %gradient.buffer = call ptr @result(ptr %frame, i64 0)
  %gradient = call ptr @data(ptr %gradient.buffer)
  %sums.buffer = call ptr @result(ptr %frame, i64 1)
  %sums = call ptr @data(ptr %sums.buffer)
  %call.0 = insertvalue %Call zeroinitializer, i64 %columns, 0
  %call.1 = insertvalue %Call %call.0, ptr %outcomes.at, 1
  %call.2 = insertvalue %Call %call.1, ptr %student, 2
  %call.3 = insertvalue %Call %call.2, ptr %teacher, 3
  %call.4 = insertvalue %Call %call.3, ptr %targets, 4
  %call.5 = insertvalue %Call %call.4, ptr %counts, 5
  %call.6 = insertvalue %Call %call.5, ptr %gradient, 6
  %call.7 = insertvalue %Call %call.6, ptr %sums, 7
  store %Call %call.7, ptr %call
  %plan.0 = insertvalue { i64, i64, i64 } zeroinitializer, i64 %rows, 0
  %plan = insertvalue { i64, i64, i64 } %plan.0, i64 %rows, 1
  ret { i64, i64, i64 } %plan
}

; A vector of scores; the lowest of all, whose exponential is 0, where it is beyond the outcomes.
define $vector @scores(ptr %row, i64 %column, i64 %outcomes) alwaysinline {
  %at = getelementptr float, ptr %row, i64 %column
  %given = load $vector, ptr %at, align 4
  %left = sub i64 %outcomes, %column
  %left.few = call i64 @llvm.smin.i64(i64 %left, i64 $lanes)
  %left.small = trunc i64 %left.few to i32
  %left.first = insertelement $integers poison, i32 %left.small, i32 0
  %left.all = shufflevector $integers %left.first, $integers poison, $integers zeroinitializer
  %is.there = icmp slt $integers $steps, %left.all
  %scores = select $mask %is.there, $vector %given, $vector $lowest
  ret $vector %scores
}

define $vector @higher($vector %one, $vector %other) alwaysinline {
  %is.higher = fcmp ogt $vector %one, %other
  %higher = select $mask %is.higher, $vector %one, $vector %other
  ret $vector %higher
}

; Both rows are read from memory once, and then from the cache.
define void @piece(ptr %call, i64 %row) {
entry:
  %all = load %Call, ptr %call
  %columns = extractvalue %Call %all, 0
  %outcomes.at = extractvalue %Call %all, 1
  %outcomes.small = load i32, ptr %outcomes.at
  %outcomes = zext i32 %outcomes.small to i64
  %students = extractvalue %Call %all, 2
  %teachers = extractvalue %Call %all, 3
  %targets = extractvalue %Call %all, 4
  %counts = extractvalue %Call %all, 5
  %gradients = extractvalue %Call %all, 6
  %sums = extractvalue %Call %all, 7
  %before = mul i64 %row, %columns
  %student.row = getelementptr float, ptr %students, i64 %before
  %teacher.row = getelementptr float, ptr %teachers, i64 %before
  %gradient.row = getelementptr float, ptr %gradients, i64 %before
  %target.at = getelementptr i32, ptr %targets, i64 %row
  %target.small = load i32, ptr %target.at
  %target = zext i32 %target.small to i64
  %counts.first = shl i64 %row, 1
  %text.count.at = getelementptr float, ptr %counts, i64 %counts.first
  %text.count = load float, ptr %text.count.at
  %teacher.count.at = getelementptr float, ptr %text.count.at, i64 1
  %teacher.count = load float, ptr %teacher.count.at
  %sums.first = shl i64 %row, 2
  %sums.at = getelementptr float, ptr %sums, i64 %sums.first
  br label %measure

measure:
  %m = phi i64 [ 0, %entry ], [ %m.next, %measure ]
  %student.most = phi $vector [ $lowest, %entry ], [ %student.higher, %measure ]
  ${taught}%teacher.most = phi $vector [ $lowest, %entry ], [ %teacher.higher, %measure ]
  %m.student = call $vector @scores(ptr %student.row, i64 %m, i64 %outcomes)
  %student.higher = call $vector @higher($vector %m.student, $vector %student.most)
  ${taught}%m.teacher = call $vector @scores(ptr %teacher.row, i64 %m, i64 %outcomes)
  ${taught}%teacher.higher = call $vector @higher($vector %m.teacher, $vector %teacher.most)
  %m.next = add i64 %m, $lanes
  %m.more = icmp ult i64 %m.next, %columns
  br i1 %m.more, label %measure, label %measured

measured:
  %student.top = call float @llvm.vector.reduce.fmax.v${lanes}f32($vector %student.higher)
  %student.tops = call $vector @everywhere(float %student.top)
  ${taught}%teacher.top = call float @llvm.vector.reduce.fmax.v${lanes}f32($vector %teacher.higher)
  ${taught}%teacher.tops = call $vector @everywhere(float %teacher.top)
  br label %sum

; Sums of exponentials, and of the teacher's times how far its scores are above the student's.
sum:
  %n = phi i64 [ 0, %measured ], [ %n.next, %sum ]
  %student.sums = phi $vector [ zeroinitializer, %measured ], [ %student.more, %sum ]
  ${taught}%teacher.sums = phi $vector [ zeroinitializer, %measured ], [ %teacher.more, %sum ]
  ${taught}%apart.sums = phi $vector [ zeroinitializer, %measured ], [ %apart.more, %sum ]
  %n.student = call $vector @scores(ptr %student.row, i64 %n, i64 %outcomes)
  %n.student.below = fsub $vector %n.student, %student.tops
  %n.student.exp = call $vector @exponential($vector %n.student.below)
  %student.more = fadd $vector %student.sums, %n.student.exp
  ${taught}%n.teacher = call $vector @scores(ptr %teacher.row, i64 %n, i64 %outcomes)
  ${taught}%n.teacher.below = fsub $vector %n.teacher, %teacher.tops
  ${taught}%n.teacher.exp = call $vector @exponential($vector %n.teacher.below)
  ${taught}%teacher.more = fadd $vector %teacher.sums, %n.teacher.exp
  ${taught}%n.apart = fsub $vector %n.teacher.below, %n.student.below
  ${taught}%n.apart.weighted = fmul $vector %n.teacher.exp, %n.apart
  ${taught}%apart.more = fadd $vector %apart.sums, %n.apart.weighted
  %n.next = add i64 %n, $lanes
  %n.more = icmp ult i64 %n.next, %columns
  br i1 %n.more, label %sum, label %summed

summed:
  %student.sum = call reassoc float @llvm.vector.reduce.fadd.v${lanes}f32(float 0.0, $vector %student.more)
  store float %student.sum, ptr %sums.at
  %student.factor = fadd float %text.count, $teacher_count
  %student.share = fdiv float %student.factor, %student.sum
  %student.shares = call $vector @everywhere(float %student.share)
  ${taught}%teacher.sum = call reassoc float @llvm.vector.reduce.fadd.v${lanes}f32(float 0.0, $vector %teacher.more)
  ${taught}%teacher.sum.at = getelementptr float, ptr %sums.at, i64 1
  ${taught}store float %teacher.sum, ptr %teacher.sum.at
  ${taught}%apart.sum = call reassoc float @llvm.vector.reduce.fadd.v${lanes}f32(float 0.0, $vector %apart.more)
  ${taught}%apart.at = getelementptr float, ptr %sums.at, i64 2
  ${taught}store float %apart.sum, ptr %apart.at
  ${taught}%teacher.share = fdiv float %teacher.count, %teacher.sum
  ${taught}%teacher.shares = call $vector @everywhere(float %teacher.share)
  %chosen.at = getelementptr float, ptr %sums.at, i64 3
  store float 0.0, ptr %chosen.at
  %has.target = icmp ult i64 %target, %outcomes
  br i1 %has.target, label %look, label %differ

look:
  %target.score.at = getelementptr float, ptr %student.row, i64 %target
  %target.score = load float, ptr %target.score.at
  %chosen = fsub float %target.score, %student.top
  store float %chosen, ptr %chosen.at
  br label %differ

differ:
  br label %slope

slope:
  %k = phi i64 [ 0, %differ ], [ %k.next, %slope ]
  %k.student = call $vector @scores(ptr %student.row, i64 %k, i64 %outcomes)
  %k.student.below = fsub $vector %k.student, %student.tops
  %k.student.exp = call $vector @exponential($vector %k.student.below)
  %k.student.part = fmul $vector %k.student.exp, %student.shares
  ${taught}%k.teacher = call $vector @scores(ptr %teacher.row, i64 %k, i64 %outcomes)
  ${taught}%k.teacher.below = fsub $vector %k.teacher, %teacher.tops
  ${taught}%k.teacher.exp = call $vector @exponential($vector %k.teacher.below)
  ${taught}%k.teacher.part = fmul $vector %k.teacher.exp, %teacher.shares
  ${taught}%k.slope = fsub $vector %k.student.part, %k.teacher.part
  %k.to = getelementptr float, ptr %gradient.row, i64 %k
  store $vector $slope, ptr %k.to, align 4
  %k.next = add i64 %k, $lanes
  %k.more = icmp ult i64 %k.next, %columns
  br i1 %k.more, label %slope, label %sloped

sloped:
  br i1 %has.target, label %take, label %end

take:
  %target.slope.at = getelementptr float, ptr %gradient.row, i64 %target
  %target.slope = load float, ptr %target.slope.at
  %target.less = fsub float %target.slope, %text.count
  store float %target.less, ptr %target.slope.at
  br label %end

end:
  ret void
}

declare float @llvm.vector.reduce.fmax.v${lanes}f32($vector)
declare float @llvm.vector.reduce.fadd.v${lanes}f32(float, $vector)
declare $vector @llvm.fmuladd.v${lanes}f32($vector, $vector, $vector)
declare i64 @llvm.smin.i64(i64, i64)
