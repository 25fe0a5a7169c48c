; What a call reads, in parts that follow one another and are shared out like its pieces, may be fetched before it
; comes: calls follow one another at every step as they did at the last. So each call notes, for the call before it,
; what it reads itself, and finds what was read after it the last time. A wrong guess costs some bandwidth.

; In this order: the first part, bytes of a part, parts, threads that share them.
%Reads = type { ptr, i64, i64, i64 }
; From a place on to before another.
%Stretch = type { ptr, ptr }

; Notes what a call reads, and tells where what follows it is noted; null for a call that reads nothing of the kind.
define ptr @note(%Reads %reads) {
entry:
  %first = extractvalue %Reads %reads, 0
  %is.nothing = icmp eq ptr %first, null
  br i1 %is.nothing, label %nothing, label %own

nothing:
  ret ptr null

own:
  %address = ptrtoint ptr %first to i64
  %line = lshr i64 %address, 6
  %mixed = mul i64 %line, $golden
  %number = lshr i64 %mixed, $hash_shift
  %behind = add i64 %number, 1
  %own.at = getelementptr %Reads, ptr inttoptr (i64 $notes to ptr), i64 %behind
  %before = load atomic ptr, ptr inttoptr (i64 $notes to ptr) monotonic, align 8
  store atomic ptr %own.at, ptr inttoptr (i64 $notes to ptr) monotonic, align 8
  %is.first = icmp eq ptr %before, null
  br i1 %is.first, label %noted, label %follow

; Calls of several threads at a time may mix up what they note, as they do what follows what.
follow:
  %bytes = extractvalue %Reads %reads, 1
  %parts = extractvalue %Reads %reads, 2
  %threads = extractvalue %Reads %reads, 3
  %bytes.at = getelementptr %Reads, ptr %before, i32 0, i32 1
  %parts.at = getelementptr %Reads, ptr %before, i32 0, i32 2
  %threads.at = getelementptr %Reads, ptr %before, i32 0, i32 3
  store atomic ptr %first, ptr %before monotonic, align 8
  store atomic i64 %bytes, ptr %bytes.at monotonic, align 8
  store atomic i64 %parts, ptr %parts.at monotonic, align 8
  store atomic i64 %threads, ptr %threads.at monotonic, align 8
  br label %noted

noted:
  ret ptr %own.at
}

; What is noted in a place, if any is.
define %Reads @noted(ptr %place) alwaysinline {
entry:
  %is.none = icmp eq ptr %place, null
  br i1 %is.none, label %done, label %read

read:
  %bytes.at = getelementptr %Reads, ptr %place, i32 0, i32 1
  %parts.at = getelementptr %Reads, ptr %place, i32 0, i32 2
  %threads.at = getelementptr %Reads, ptr %place, i32 0, i32 3
  %first = load atomic ptr, ptr %place monotonic, align 8
  %bytes = load atomic i64, ptr %bytes.at monotonic, align 8
  %parts = load atomic i64, ptr %parts.at monotonic, align 8
  %threads = load atomic i64, ptr %threads.at monotonic, align 8
  %reads.0 = insertvalue %Reads zeroinitializer, ptr %first, 0
  %reads.1 = insertvalue %Reads %reads.0, i64 %bytes, 1
  %reads.2 = insertvalue %Reads %reads.1, i64 %parts, 2
  %reads.3 = insertvalue %Reads %reads.2, i64 %threads, 3
  br label %done

done:
  %reads = phi %Reads [ zeroinitializer, %entry ], [ %reads.3, %read ]
  ret %Reads %reads
}

; What a thread's share begins with; nothing for a thread there is no share for.
define %Stretch @beginning(%Reads %reads, i64 %thread) alwaysinline {
  %first = extractvalue %Reads %reads, 0
  %bytes = extractvalue %Reads %reads, 1
  %parts = extractvalue %Reads %reads, 2
  %threads.noted = extractvalue %Reads %reads, 3
  %is.share = icmp ult i64 %thread, %threads.noted
  %threads = call i64 @llvm.umax.i64(i64 %threads.noted, i64 1)
  %next = add i64 %thread, 1
  %from.far = mul i64 %thread, %parts
  %from.part = udiv i64 %from.far, %threads
  %end.far = mul i64 %next, %parts
  %end.part = udiv i64 %end.far, %threads
  %own = sub i64 %end.part, %from.part
  %own.bytes = mul i64 %own, %bytes
  %few = call i64 @llvm.umin.i64(i64 %own.bytes, i64 $fetched)
  %length = select i1 %is.share, i64 %few, i64 0
  %from.byte = mul i64 %from.part, %bytes
  %from = getelementptr i8, ptr %first, i64 %from.byte
  %end = getelementptr i8, ptr %from, i64 %length
  %stretch.0 = insertvalue %Stretch zeroinitializer, ptr %from, 0
  %stretch = insertvalue %Stretch %stretch.0, ptr %end, 1
  ret %Stretch %stretch
}

; Fetches four lines of it, and tells what is left.
define %Stretch @fetch(%Stretch %stretch) alwaysinline {
entry:
  %from = extractvalue %Stretch %stretch, 0
  %end = extractvalue %Stretch %stretch, 1
  %is.more = icmp ult ptr %from, %end
  br i1 %is.more, label %fetch, label %done

fetch:
  %second = getelementptr i8, ptr %from, i64 64
  %third = getelementptr i8, ptr %from, i64 128
  %fourth = getelementptr i8, ptr %from, i64 192
  call void @llvm.prefetch.p0(ptr %from, i32 0, i32 2, i32 1)
  call void @llvm.prefetch.p0(ptr %second, i32 0, i32 2, i32 1)
  call void @llvm.prefetch.p0(ptr %third, i32 0, i32 2, i32 1)
  call void @llvm.prefetch.p0(ptr %fourth, i32 0, i32 2, i32 1)
  %next = getelementptr i8, ptr %from, i64 256
  %left.fetched = insertvalue %Stretch %stretch, ptr %next, 0
  br label %done

done:
  %left = phi %Stretch [ %stretch, %entry ], [ %left.fetched, %fetch ]
  ret %Stretch %left
}

declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
