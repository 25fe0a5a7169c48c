; A custom call of XLA's: rows of x times a matrix in panels, which XLA's threads share out among themselves.
; The structs and the order of the functions are those of xla/ffi/api/c_api.h, versions 0.3 and 0.4.

%Buffer = type { i64, ptr, i32, ptr, i64, ptr }                       ; size, extensions, type, data, rank, dims
%Values = type { i64, ptr, i64, ptr, ptr }                            ; size, extensions, count, types, buffers
%Attributes = type { i64, ptr, i64, ptr, ptr, ptr }
%Frame = type { i64, ptr, ptr, ptr, i32, %Values, %Values, %Attributes, ptr } ; ..., api, context, stage, arguments, results, attributes, future
%Version = type { i64, ptr, i32, i32 }                                ; ..., major, minor
%Metadata = type { i64, %Version, i32, i64 }
%Extension = type { i64, i32, ptr, ptr }                              ; ..., metadata
%Api = type { i64, ptr, %Version, ptr, [18 x ptr] }                   ; ..., functions
%Failed = type { i64, ptr, ptr }                                      ; ..., error
%Future = type { i64, ptr, ptr }                                      ; ..., future
%Threads = type { i64, ptr, ptr, ptr }                                ; ..., context, where the number goes
%Task = type { i64, ptr, ptr, ptr, ptr }                              ; ..., context, function, its argument

; What the threads that share a product know of it.
%Work = type { i64, i64, i64, i64, i64, i64, ptr, ptr, ptr, ptr, ptr } ; next panel, threads at it, panels, steps, outputs, rows, x, panels, out, api, future

; Multiplies so many rows with a panel, by how many they are.
@tiles = private constant [$tile_count x ptr] [ $tiles ]

declare ptr @malloc(i64)
declare void @free(ptr)

; Called once when it is registered, to say which version it speaks, and then for every product.
define ptr @handler(ptr %frame) {
entry:
  %extension.at = getelementptr %Frame, ptr %frame, i32 0, i32 1
  %extension = load ptr, ptr %extension.at
  %is.there = icmp ne ptr %extension, null
  br i1 %is.there, label %look, label %execute

look:
  %kind.at = getelementptr %Extension, ptr %extension, i32 0, i32 1
  %kind = load i32, ptr %kind.at
  %is.asked = icmp eq i32 %kind, 1
  br i1 %is.asked, label %describe, label %execute

describe:
  %metadata.at = getelementptr %Extension, ptr %extension, i32 0, i32 3
  %metadata = load ptr, ptr %metadata.at
  %major.at = getelementptr %Metadata, ptr %metadata, i32 0, i32 1, i32 2
  store i32 0, ptr %major.at
  %minor.at = getelementptr %Metadata, ptr %metadata, i32 0, i32 1, i32 3
  store i32 $minor, ptr %minor.at
  ret ptr null

execute:
  %api.at = getelementptr %Frame, ptr %frame, i32 0, i32 2
  %api = load ptr, ptr %api.at
  %context.at = getelementptr %Frame, ptr %frame, i32 0, i32 3
  %context = load ptr, ptr %context.at
  %arguments.at = getelementptr %Frame, ptr %frame, i32 0, i32 5, i32 4
  %arguments = load ptr, ptr %arguments.at
  %results.at = getelementptr %Frame, ptr %frame, i32 0, i32 6, i32 4
  %results = load ptr, ptr %results.at
  %x = call ptr @data(ptr %arguments, i64 0)
  %weights = call ptr @data(ptr %arguments, i64 1)
  %out = call ptr @data(ptr %results, i64 0)
  %panels = call i64 @dimension(ptr %arguments, i64 1, i64 0)
  %steps = call i64 @dimension(ptr %arguments, i64 1, i64 1)
  %rows = call i64 @dimension(ptr %results, i64 0, i64 0)
  %outputs = call i64 @dimension(ptr %results, i64 0, i64 1)

  %count = alloca i64
  store i64 1, ptr %count
  %threads.ask = alloca %Threads
  %ask.0 = insertvalue %Threads { i64 32, ptr null, ptr null, ptr null }, ptr %context, 2
  %ask.1 = insertvalue %Threads %ask.0, ptr %count, 3
  store %Threads %ask.1, ptr %threads.ask
  %threads.error = call ptr @call(ptr %api, i32 12, ptr %threads.ask)
  call void @forget(ptr %api, ptr %threads.error)
  %there = load i64, ptr %count
  %quarter = lshr i64 %panels, 2
  %useful = call i64 @llvm.umax.i64(i64 %quarter, i64 1)
  %few = call i64 @llvm.umin.i64(i64 %there, i64 %useful)
  %threads = call i64 @llvm.umax.i64(i64 %few, i64 1)
  %is.alone = icmp eq i64 %threads, 1

  %work = call ptr @malloc(i64 88)
  %work.0 = insertvalue %Work zeroinitializer, i64 %threads, 1
  %work.1 = insertvalue %Work %work.0, i64 %panels, 2
  %work.2 = insertvalue %Work %work.1, i64 %steps, 3
  %work.3 = insertvalue %Work %work.2, i64 %outputs, 4
  %work.4 = insertvalue %Work %work.3, i64 %rows, 5
  %work.5 = insertvalue %Work %work.4, ptr %x, 6
  %work.6 = insertvalue %Work %work.5, ptr %weights, 7
  %work.7 = insertvalue %Work %work.6, ptr %out, 8
  %work.8 = insertvalue %Work %work.7, ptr %api, 9
  store %Work %work.8, ptr %work
  br i1 %is.alone, label %work.on, label %share

share:
  %made = alloca %Future
  store %Future { i64 24, ptr null, ptr null }, ptr %made
  %made.error = call ptr @call(ptr %api, i32 13, ptr %made)
  call void @forget(ptr %api, ptr %made.error)
  %made.at = getelementptr %Future, ptr %made, i32 0, i32 2
  %future = load ptr, ptr %made.at
  %future.at = getelementptr %Frame, ptr %frame, i32 0, i32 8
  store ptr %future, ptr %future.at
  %told.at = getelementptr %Work, ptr %work, i32 0, i32 10
  store ptr %future, ptr %told.at
  %is.unmade = icmp eq ptr %future, null
  br i1 %is.unmade, label %alone, label %with.others

; Nobody could be told when others are done.
alone:
  %count.at = getelementptr %Work, ptr %work, i32 0, i32 1
  store i64 1, ptr %count.at
  br label %work.on

with.others:
  %task = alloca %Task
  %task.0 = insertvalue %Task { i64 40, ptr null, ptr null, ptr @take.part, ptr null }, ptr %context, 2
  %task.1 = insertvalue %Task %task.0, ptr %work, 4
  store %Task %task.1, ptr %task
  br label %ask

ask:
  %others = phi i64 [ 1, %with.others ], [ %others.next, %asked ]
  %refused = call ptr @call(ptr %api, i32 11, ptr %task)
  %is.refused = icmp ne ptr %refused, null
  br i1 %is.refused, label %instead, label %asked

instead:
  call void @forget(ptr %api, ptr %refused)
  call void @take.part(ptr %work)
  br label %asked

asked:
  %others.next = add i64 %others, 1
  %is.more = icmp ult i64 %others.next, %threads
  br i1 %is.more, label %ask, label %work.on

work.on:
  call void @take.part(ptr %work)
  ret ptr null
}

; Takes one panel after another until none is left. The last thread to leave says that the product is there.
define void @take.part(ptr %work) {
entry:
  %all = load %Work, ptr %work
  %panels = extractvalue %Work %all, 2
  %steps = extractvalue %Work %all, 3
  %outputs = extractvalue %Work %all, 4
  %rows = extractvalue %Work %all, 5
  %x = extractvalue %Work %all, 6
  %weights = extractvalue %Work %all, 7
  %out = extractvalue %Work %all, 8
  %api = extractvalue %Work %all, 9
  %future = extractvalue %Work %all, 10
  %size = mul i64 %steps, $row
  br label %next

next:
  %panel = atomicrmw add ptr %work, i64 1 monotonic
  %is.there = icmp ult i64 %panel, %panels
  br i1 %is.there, label %multiply, label %leave

multiply:
  %first = mul i64 %panel, %size
  %from = getelementptr $weights, ptr %weights, i64 %first
  %column = mul i64 %panel, $width
  %to = getelementptr $out, ptr %out, i64 %column
  br label %some.rows

some.rows:
  %row = phi i64 [ 0, %multiply ], [ %row.next, %some.rows ]
  %rows.left = sub i64 %rows, %row
  %these = call i64 @llvm.umin.i64(i64 %rows.left, i64 $most)
  %tile.at = getelementptr ptr, ptr @tiles, i64 %these
  %tile = load ptr, ptr %tile.at
  %x.first = mul i64 %row, %steps
  %x.here = getelementptr $x, ptr %x, i64 %x.first
  %to.first = mul i64 %row, %outputs
  %to.here = getelementptr $out, ptr %to, i64 %to.first
  call void %tile(ptr %x.here, ptr %from, ptr %to.here, i64 %steps, i64 %outputs)
  %row.next = add i64 %row, %these
  %is.more = icmp ult i64 %row.next, %rows
  br i1 %is.more, label %some.rows, label %next

leave:
  %left.at = getelementptr %Work, ptr %work, i32 0, i32 1
  %left = atomicrmw sub ptr %left.at, i64 1 acq_rel
  %is.last = icmp eq i64 %left, 1
  br i1 %is.last, label %end, label %done

end:
  call void @free(ptr %work)
  %is.awaited = icmp ne ptr %future, null
  br i1 %is.awaited, label %tell, label %done

tell:
  %told = alloca %Future
  %told.0 = insertvalue %Future { i64 24, ptr null, ptr null }, ptr %future, 2
  store %Future %told.0, ptr %told
  %error = call ptr @call(ptr %api, i32 14, ptr %told)
  call void @forget(ptr %api, ptr %error)
  ret void

done:
  ret void
}

define ptr @data(ptr %buffers, i64 %which) alwaysinline {
  %buffer.at = getelementptr ptr, ptr %buffers, i64 %which
  %buffer = load ptr, ptr %buffer.at
  %data.at = getelementptr %Buffer, ptr %buffer, i32 0, i32 3
  %data = load ptr, ptr %data.at
  ret ptr %data
}

define i64 @dimension(ptr %buffers, i64 %which, i64 %axis) alwaysinline {
  %buffer.at = getelementptr ptr, ptr %buffers, i64 %which
  %buffer = load ptr, ptr %buffer.at
  %dims.at = getelementptr %Buffer, ptr %buffer, i32 0, i32 5
  %dims = load ptr, ptr %dims.at
  %dimension.at = getelementptr i64, ptr %dims, i64 %axis
  %dimension = load i64, ptr %dimension.at
  ret i64 %dimension
}

; One of XLA's functions, by its place in their list: 2 frees an error, 11 gives the threads a task, 12 counts
; them, 13 makes a future, 14 says that it is there.
define ptr @call(ptr %api, i32 %which, ptr %argument) alwaysinline {
  %function.at = getelementptr %Api, ptr %api, i32 0, i32 4, i32 %which
  %function = load ptr, ptr %function.at
  %error = call ptr %function(ptr %argument)
  ret ptr %error
}

define void @forget(ptr %api, ptr %error) alwaysinline {
entry:
  %is.error = icmp ne ptr %error, null
  br i1 %is.error, label %free, label %done

free:
  %failed = alloca %Failed
  %failed.0 = insertvalue %Failed { i64 24, ptr null, ptr null }, ptr %error, 2
  store %Failed %failed.0, ptr %failed
  %nothing = call ptr @call(ptr %api, i32 2, ptr %failed)
  br label %done

done:
  ret void
}

declare i64 @llvm.umax.i64(i64, i64)
declare i64 @llvm.umin.i64(i64, i64)
