"""A kernel in LLVM IR to try the machinery with."""

import ctypes

#: Context: the counter of tasks, how many there are, the stop flag, where task t adds 1 to a number `work` times.
COUNTING = """
define void @count(ptr %c) nounwind {
entry:
  %totals = getelementptr i64, ptr %c, i64 1
  %stops = getelementptr i64, ptr %c, i64 2
  %outs = getelementptr i64, ptr %c, i64 3
  %works = getelementptr i64, ptr %c, i64 4
  %total = load i64, ptr %totals
  %out = load ptr, ptr %outs
  %work = load i64, ptr %works
  br label %head
head:
  %stop = load atomic i64, ptr %stops monotonic, align 8
  %go = icmp eq i64 %stop, 0
  br i1 %go, label %draw, label %end
draw:
  %t = atomicrmw add ptr %c, i64 1 monotonic
  %more = icmp slt i64 %t, %total
  br i1 %more, label %body, label %end
body:
  %p = getelementptr i64, ptr %out, i64 %t
  br label %again
again:
  %i = phi i64 [0, %body], [%j, %again]
  %v = load volatile i64, ptr %p
  %w = add i64 %v, 1
  store volatile i64 %w, ptr %p
  %j = add i64 %i, 1
  %once = icmp slt i64 %j, %work
  br i1 %once, label %again, label %head
end:
  ret void
}
"""

#: x * x + 1.5 of sixteen numbers, and the C library's exp.
VECTORS = """
declare <16 x float> @llvm.fma.v16f32(<16 x float>, <16 x float>, <16 x float>)
declare double @exp(double)

define void @square(ptr %a) nounwind {
  %x = load <16 x float>, ptr %a, align 4
  %y = call <16 x float> @llvm.fma.v16f32(<16 x float> %x, <16 x float> %x, <16 x float> splat (float 1.5))
  store <16 x float> %y, ptr %a, align 4
  ret void
}

define double @exponential(double %x) nounwind {
  %y = call double @exp(double %x)
  ret double %y
}
"""


class Count:
    """A context of the counting kernel."""

    def __init__(self, tasks: int, work: int = 1):
        self.out = (ctypes.c_int64 * max(tasks, 1))()
        self.fields = (ctypes.c_int64 * 5)(0, tasks, 0, ctypes.addressof(self.out), work)
        self.tasks, self.work = tasks, work

    @property
    def address(self) -> int:
        return ctypes.addressof(self.fields)

    @property
    def stop(self) -> int:
        return self.address + 16

    @property
    def done(self) -> bool:
        """Whether every task has run, once."""
        return list(self.out)[: self.tasks] == [self.work] * self.tasks


def growth_kib(do, times: int) -> float:
    """How much the process grows per call, in KiB, once it has got used to it."""
    import gc

    def resident() -> int:
        with open("/proc/self/statm", encoding="utf-8") as figures:
            return int(figures.read().split()[1]) * 4

    threshold = gc.get_threshold()
    gc.set_threshold(700, 10, 10)  # as in a process of its own: garbage is no growth
    try:
        for _ in range(times // 4):
            do()
        gc.collect()
        before = resident()
        for _ in range(times):
            do()
        gc.collect()
        return (resident() - before) / times
    finally:
        gc.set_threshold(*threshold)
