"""Hand-written modules that tests read, run, change and break."""
# ruff: noqa: E501  (IR texts keep their lines)

GEO = """\
aatc 2

dims {N in [1, inf], M in [2, 4096]}

geo.func @main(%q: f64[1,2,N,4], %k: f64[1,2,M,4], %v: f64[1,2,M,4], %beta: f64[2]) {
  %s = geo.metric(%q, %k, %beta) {score = fn(q: f[bhid], k: f[bhjd], beta: f[h]) => -(beta * acosh(-dot(eta(q), k)))} : \
pair<f64[1,2,N,M]> loc("model.py":12:"    s = metric(q, k)")
  %p, %lse = geo.normalize(%s) {kind = "softmax", mask = fn() => j <= i + 3} : pair<f64[1,2,N,M]>, f64[1,2,N] loc("model.py":13)
  %c = geo.transport(%v, %p) {carry = fn(v: f[bhjd]) => let t0 = sin(v) in t0 * t0} : pair<f64[1,2,N,M,4]>
  %o = geo.aggregate(%p, %c) {kind = "mean"} : f64[1,2,N,4]
  %y = torch.call(%o, %lse) {target = "aten.add.Tensor", args = [#0, 1.0], kwargs = []} : f64[1,2,N,4] loc("model.py":14:"\\"y\\"")
  %z = geo.checkpoint(%y) {body = @half} : f64[1,2,N,4]
  geo.return(%z)
}

geo.func @half(%x: f64[1,2,N,4]) {note = "recomputed", sizes = [1, [2, none], dim(2*N+1), -0.0, inf]} {
  %0 = torch.call(%x) {target = "aten.mul.Tensor", args = [#0, 0.5]} : f64[1,2,N,4]
  geo.return(%0)
}
"""

#: Attention with a running maximum over tiles, planned: every tile has its place in the arena.
TILE = """\
aatc 2

dims {N in [1, inf], M in [2, 4096]}

geo.func @main(%q: f64[1,2,N,4], %k: f64[1,2,M,4], %v: f64[1,2,M,4]) {
  %o, %lse = geo.kernel(%q, %k, %v) {names = ["q", "k", "v"], score = fn(q: f[bhid], k: f[bhjd]) => dot(q, k), kind = "softmax", aggregate = "mean", forward = @attend, backward = @nothing, grads = []} : \
f64[1,2,N,4], f64[1,2,N]
  geo.return(%o)
}

tile.func @attend(%q: f64[1,2,N,4], %k: f64[1,2,M,4], %v: f64[1,2,M,4]) {schedule = "split(i, 8) split(j, 16)", cpu.arena = 3072} {
  %a = tile.token(%q) {program = fn(q: f[bhid]) => q, axes = "bhid", sizes = [1, 2, dim(N), dim(M)], flat = true} : f64[2,N,4]
  %b = tile.token(%k) {program = fn(k: f[bhjd]) => k, axes = "bhjd", sizes = [1, 2, dim(N), dim(M)], flat = true} : f64[2,M,4]
  %c = tile.token(%v) {program = fn(v: f[bhjd]) => v, axes = "bhjd", sizes = [1, 2, dim(N), dim(M)], flat = true} : f64[2,M,4]
  %js = tile.token() {program = fn() => j, axes = "bhj", sizes = [1, 2, dim(N), dim(M)], flat = true} : f64[2,M]
  %is = tile.token() {program = fn() => i, axes = "bhi", sizes = [1, 2, dim(N), dim(M)], flat = true} : f64[2,N]
  %tiles = tile.classify() {mask = fn() => j <= i, rows = 8, cols = 4, sizes = [1, 2, dim(N), dim(M)], heads = 1} : runs[1,8,4]
  %acc_all = tile.alloc() : f64[2,N,4]
  %lse_all = tile.alloc() : f64[2,N]
  tile.for() {axis = "g", upper = 2, step = 1, kind = "par"} (%g: index) {
    tile.for() {axis = "i", upper = dim(N), step = 8, kind = "par"} (%i: index) {
      %m0 = tile.fill(%g, %i) {value = -1e+38, axes = "gi", cpu.plan = [2048]} : tile<f64[1,8,1]>
      %l0 = tile.fill(%g, %i) {value = 0.0, axes = "gi", cpu.plan = [2112]} : tile<f64[1,8,1]>
      %acc0 = tile.fill(%g, %i) {value = 0.0, axes = "gid", cpu.plan = [2176]} : tile<f64[1,8,4]>
      %m, %l, %acc = tile.sweep(%tiles, %g, %i, %m0, %l0, %acc0) {upper = dim(M), step = 16, kind = "seq", \
cpu.plan = [2048, 2112, 2176]} (%j: index, %partial: bool, %m1: tile<f64[1,8,1]>, %l1: tile<f64[1,8,1]>, %acc1: tile<f64[1,8,4]>) {
        %at = tile.load(%a, %g, %i) {axes = "gid"} : tile<f64[1,8,4]>
        %bt = tile.load(%b, %g, %j) {axes = "gjd"} : tile<f64[1,16,4]>
        %s = tile.dot(%at, %bt) {form = "nt", cpu.plan = [0]} : tile<f64[1,8,16]>
        %jt = tile.load(%js, %g, %j) {axes = "gj"} : tile<f64[1,1,16]>
        %it = tile.load(%is, %g, %i) {axes = "gi"} : tile<f64[1,8,1]>
        %masked = tile.mask(%s, %partial, %jt, %it) {mask = fn(c: f[bhj], r: f[bhi]) => c <= r, value = -inf, cpu.plan = [0], cpu.scratch = [2560, 1024]} : tile<f64[1,8,16]>
        %top = tile.reduce(%masked, %m1) {op = "max", over = "j", cpu.plan = [2432]} : tile<f64[1,8,1]>
        %p = tile.map(%masked, %top) {programs = [fn(x: f[bhij], n: f[bhi]) => exp(x - n)], cpu.plan = [0]} : tile<f64[1,8,16]>
        %shrink = tile.map(%m1, %top) {programs = [fn(m: f[bhi], n: f[bhi]) => exp(m - n)], cpu.plan = [2048]} : tile<f64[1,8,1]>
        %ls = tile.map(%l1, %shrink) {programs = [fn(l: f[bhi], w: f[bhi]) => l * w], cpu.plan = [2112]} : tile<f64[1,8,1]>
        %l2 = tile.reduce(%p, %ls) {op = "sum", over = "j", cpu.plan = [2112]} : tile<f64[1,8,1]>
        %accs = tile.map(%acc1, %shrink) {programs = [fn(c: f[bhid], w: f[bhi]) => c * w], cpu.plan = [2176]} : tile<f64[1,8,4]>
        %ct = tile.load(%c, %g, %j) {axes = "gjd"} : tile<f64[1,16,4]>
        %acc2 = tile.dot(%p, %ct, %accs) {form = "nn", cpu.plan = [2176]} : tile<f64[1,8,4]>
        tile.yield(%top, %l2, %acc2)
      } : tile<f64[1,8,1]>, tile<f64[1,8,1]>, tile<f64[1,8,4]>
      %lt = tile.map(%l, %m) {programs = [fn(l: f[bhi], m: f[bhi]) => m + log(l)], cpu.plan = [0]} : tile<f64[1,8,1]>
      %ot = tile.map(%acc, %l) {programs = [fn(c: f[bhid], l: f[bhi]) => c / l], cpu.plan = [2176]} : tile<f64[1,8,4]>
      tile.store(%ot, %acc_all, %g, %i) {axes = "gid", add = false}
      tile.store(%lt, %lse_all, %g, %i) {axes = "gi", add = false}
      tile.yield()
    }
    tile.yield()
  }
  %o = tile.token(%acc_all) {program = fn(o: f[bhid]) => o, axes = "bhid", sizes = [1, 2, dim(N), dim(M)], flat = false} : \
f64[1,2,N,4]
  %lse = tile.token(%lse_all) {program = fn(l: f[bhi]) => l, axes = "bhi", sizes = [1, 2, dim(N), dim(M)], flat = false} : f64[1,2,N]
  tile.return(%o, %lse)
}

tile.func @nothing(%grad_o: f64[1,2,N,4], %grad_lse: f64[1,2,N], %q: f64[1,2,N,4], %k: f64[1,2,M,4], %v: f64[1,2,M,4]) {
  tile.return()
}
"""
#: A planned program: what %a held is read before %c takes its place.
PROGRAM = """\
aatc 2

program.func @main(%x: f32[2,64], %w: f32[64], %n: i64[3]) {words = 448, alignment = 64} {
  %axpy = program.kernel() {name = "axpy", hash = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", push = ["x", "y", "n", "A"], local = [64, 1, 1], shared = 0, features = ["subgroup(8)"], block = false} : kernel
  %turn = program.kernel() {name = "turn", hash = "fedcba9876543210fedcba9876543210fedcba9876543210fedcba9876543210", push = ["x", "y", "n"], local = [8, 8, 1], shared = 4096, features = [], block = true} : kernel
  %a = program.buffer() {keep = false, offset = 128} : f32[2,64]
  %b = program.buffer() {keep = true, offset = 0} : f32[64]
  %c = program.buffer() {keep = false, offset = 128} : f32[128]
  %d = program.buffer() {keep = false, offset = 256} : f32[2,64]
  %at = program.buffer() {keep = true, offset = 64} : i32[3]
  %k = program.buffer() {keep = false, offset = 384} : i32[3]
  program.upload(%x, %a)
  program.upload(%n, %k)
  program.parameter(%w, %b) loc("model.py":3:"w")
  program.block(%at, %d, %c) {words = [#1, #2, 128]}
  program.zero(%d) {level = 0}
  %half = program.part(%d) {start = 64} : f32[64]
  program.dispatch(%axpy, %b, %half) {access = ["read", "update"], grid = [1, 1, 1], push = [#1, #2, 64, -0.5], level = 1}
  program.dispatch(%axpy, %a, %d, %k) {access = ["read", "update", "read"], grid = [2, 1, 1], push = [#1, #2, 128, inf], level = 2}
  program.dispatch(%turn, %at, %d, %c) {access = ["read", "read", "write"], grid = [2, 1, 1], push = [#1], level = 3}
  %y = program.download(%c) : bf16[128]
  program.return(%y, %x)
}
"""

SAMPLES = {"geo": GEO, "tile": TILE, "program": PROGRAM}

#: A function around the body that is put into it by `str.format`.
FUNC = "aatc 2\n\ngeo.func @main(%x: f32[4]) {{\n  {}\n}}\n"
