; How code speaks with XLA. The structs and the order of the functions are those of xla/ffi/api/c_api.h, versions 0.3 to 0.5.

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

define void @tell(ptr %api, ptr %future) alwaysinline {
  %told = alloca %Future
  %told.0 = insertvalue %Future { i64 24, ptr null, ptr null }, ptr %future, 2
  store %Future %told.0, ptr %told
  %error = call ptr @call(ptr %api, i32 14, ptr %told)
  call void @forget(ptr %api, ptr %error)
  ret void
}

define ptr @argument(ptr %frame, i64 %which) alwaysinline {
  %buffers.at = getelementptr %Frame, ptr %frame, i32 0, i32 5, i32 4
  %buffers = load ptr, ptr %buffers.at
  %buffer.at = getelementptr ptr, ptr %buffers, i64 %which
  %buffer = load ptr, ptr %buffer.at
  ret ptr %buffer
}

define ptr @result(ptr %frame, i64 %which) alwaysinline {
  %buffers.at = getelementptr %Frame, ptr %frame, i32 0, i32 6, i32 4
  %buffers = load ptr, ptr %buffers.at
  %buffer.at = getelementptr ptr, ptr %buffers, i64 %which
  %buffer = load ptr, ptr %buffer.at
  ret ptr %buffer
}

define ptr @data(ptr %buffer) alwaysinline {
  %data.at = getelementptr %Buffer, ptr %buffer, i32 0, i32 3
  %data = load ptr, ptr %data.at
  ret ptr %data
}

define i64 @dimension(ptr %buffer, i64 %axis) alwaysinline {
  %dims.at = getelementptr %Buffer, ptr %buffer, i32 0, i32 5
  %dims = load ptr, ptr %dims.at
  %dimension.at = getelementptr i64, ptr %dims, i64 %axis
  %dimension = load i64, ptr %dimension.at
  ret i64 %dimension
}

define i64 @dimension.from.end(ptr %buffer, i64 %back) alwaysinline {
  %rank.at = getelementptr %Buffer, ptr %buffer, i32 0, i32 4
  %rank = load i64, ptr %rank.at
  %axis = sub i64 %rank, %back
  %dimension = call i64 @dimension(ptr %buffer, i64 %axis)
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

declare ptr @malloc(i64)
declare void @free(ptr)
declare i64 @llvm.umax.i64(i64, i64)
declare i64 @llvm.umin.i64(i64, i64)
