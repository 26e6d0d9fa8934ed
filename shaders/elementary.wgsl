Elementary functions, written by hand. A function may call those above it.

// [w_exp2]
// 2 to the power x, to a unit in the last place; 0 below 2 to the power -125.5.
fn w_exp2(x: f32) -> f32 {
  let c: f32 = clamp(x, -126.0, 128.6);
  let n: f32 = floor(c + 0.5);
  let f: f32 = c - n;
  let p: f32 = (((((0.00015328872541431338 * f + 0.0013390970416367054) * f + 0.009618500247597694) * f + 0.05550359562039375) * f + 0.24022647738456726) * f + 0.6931471824645996) * f + 1.0;
  let y: f32 = 2.0 * p * bits_f(u32(i32(n) + 126) << 23u);
  return select(y, 0.0, x < -125.5);
}

// [w_exp]
// The part of x between multiples of log 2 is what is left of two differences, the first of which is exact.
fn w_exp(x: f32) -> f32 {
  let c: f32 = clamp(x, -88.0, 89.0);
  let n: f32 = floor(1.4426950408889634 * c + 0.5);
  let f: f32 = (c - n * 0.693145751953125) - n * 1.42860677e-6;
  let p: f32 = (((((0.001382131827995181 * f + 0.00836866907775402) * f + 0.04166825860738754) * f + 0.1666652113199234) * f + 0.4999999403953552) * f + 1.0) * f + 1.0;
  let y: f32 = 2.0 * p * bits_f(u32(i32(n) + 126) << 23u);
  return select(y, 0.0, x < -87.0);
}

// [w_finite]
fn w_finite(x: f32) -> bool { return (f_bits(x) & 0x7f800000u) != 0x7f800000u; }

// [w_log2]
// Of 0, -inf; of a number below, NaN.
fn w_log2(x: f32) -> f32 {
  let e: i32 = (i32(f_bits(x)) - 0x3f400000) >> 23u;
  let t: f32 = bits_f(f_bits(x) - (u32(e) << 23u)) - 1.0;
  let y: f32 = f32(e) + t * ((((((((0.07858753949403763 * t - 0.17463845014572144) * t + 0.2162611484527588) * t - 0.24262185394763947) * t + 0.2881852984428406) * t - 0.36058276891708374) * t + 0.4809027314186096) * t - 0.7213483452796936) * t + 1.4426950216293335);
  if (x <= 0.0) { return select(bits_f(0x7fc00000u), bits_f(0xff800000u), x == 0.0); }
  return select(y, x, f_bits(x) == 0x7f800000u);
}

// [w_log]
fn w_log(x: f32) -> f32 {
  let e: i32 = (i32(f_bits(x)) - 0x3f400000) >> 23u;
  let t: f32 = bits_f(f_bits(x) - (u32(e) << 23u)) - 1.0;
  let y: f32 = f32(e) * 0.6931471805599453 + t * ((((((((0.05408977344632149 * t - 0.12061236053705215) * t + 0.14981293678283691) * t - 0.16822849214076996) * t + 0.1997734010219574) * t - 0.24993479251861572) * t + 0.33333542943000793) * t - 0.5000005960464478) * t + 1.0);
  if (x <= 0.0) { return select(bits_f(0x7fc00000u), bits_f(0xff800000u), x == 0.0); }
  return select(y, x, f_bits(x) == 0x7f800000u);
}

// [w_log1p]
// Near 0 by the series of 2 atanh(x / (2 + x)): what rounding takes from 1 + x would count there.
fn w_log1p(x: f32) -> f32 {
  let s: f32 = x / (2.0 + x);
  let q: f32 = s * s;
  let near: f32 = 2.0 * s * (1.0 + q * (0.33333333 + q * (0.2 + q * (0.14285714 + q * (0.11111111 + q * 0.090909091)))));
  return select(w_log(1.0 + x), near, abs(x) < 0.5);
}

// [w_tanh]
fn w_tanh(x: f32) -> f32 {
  let a: f32 = abs(x);
  if (a < 0.25) {
    let s: f32 = x * x;
    return x * (1.0 - s * (0.3333333333 - s * (0.1333333333 - s * (0.05396825397 - s * (0.02186948854 - s * 0.008863235530)))));
  }
  let e: f32 = exp2(-2.8853900817779268 * min(a, 20.0));
  let t: f32 = (1.0 - e) / (1.0 + e);
  return select(t, -t, x < 0.0);
}

// [w_sigmoid]
fn w_sigmoid(x: f32) -> f32 {
  let e: f32 = w_exp2(-1.4426950408889634 * abs(x));
  let s: f32 = e / (1.0 + e);
  return select(1.0 - s, s, x < 0.0);
}

// [w_softplus]
fn w_softplus(x: f32) -> f32 { return max(x, 0.0) + w_log1p(w_exp2(-1.4426950408889634 * abs(x))); }

// [w_acosh]
fn w_acosh(x: f32) -> f32 {
  let t: f32 = max(x, 1.0) - 1.0;
  if (t > 1e15) { return 0.6931471805599453 * (1.0 + log2(t)); }
  return w_log1p(t + sqrt(t * (t + 2.0)));
}

// [w_expacosh]
fn w_expacosh(x: f32) -> f32 {
  let t: f32 = max(x, 1.0);
  return 1.0 / (t + sqrt((t - 1.0) * (t + 1.0)));
}

// [w_asin_small]
// asin(x) / x as a function of s = x * x, s at most 1/4.
fn w_asin_small(s: f32) -> f32 {
  return 1.0 + s * (0.16666667 + s * (0.075 + s * (0.044642857 + s * (0.030381944 + s * (0.022372159 + s * (0.017352764
    + s * (0.01396484 + s * (0.01155180 + s * (0.00976161 + s * (0.00839034 + s * 0.00731253))))))))));
}

// [w_asinsqrt]
fn w_asinsqrt(x: f32) -> f32 {
  let s: f32 = clamp(x, 0.0, 1.0);
  if (s <= 0.25) { return sqrt(s) * w_asin_small(s); }
  let r: f32 = 0.5 * (1.0 - sqrt(s));
  return 1.5707963267948966 - 2.0 * sqrt(r) * w_asin_small(r);
}

// [w_acos]
fn w_acos(x: f32) -> f32 {
  let c: f32 = clamp(x, -1.0, 1.0);
  let h: f32 = w_asinsqrt(0.5 * (1.0 - abs(c)));
  return select(3.141592653589793 - 2.0 * h, 2.0 * h, c >= 0.0);
}

// [w_sign]
fn w_sign(x: f32) -> f32 { return select(select(0.0, -1.0, x < 0.0), 1.0, x > 0.0); }

// [w_power]
fn w_power(x: f32, y: f32) -> f32 {
  if (y == 0.0 || x == 1.0) { return 1.0; }
  let r: f32 = select(w_exp2(y * w_log2(abs(x))), select(bits_f(0x7f800000u), 0.0, y > 0.0), x == 0.0);
  if (x >= 0.0) { return r; }
  if (floor(y) != y) { return bits_f(0x7fc00000u); }
  return select(-r, r, floor(0.5 * y) * 2.0 == y);
}

// [w_floordiv]
fn w_floordiv(x: f32, y: f32) -> f32 {
  var q: f32 = floor(x / y);
  let r: f32 = x - q * y;
  if (r != 0.0 && ((r < 0.0) != (y < 0.0))) { q = q - 1.0; }
  if (abs(r) >= abs(y)) { q = q + 1.0; }
  return q;
}

// [w_remainder]
fn w_remainder(x: f32, y: f32) -> f32 { return x - w_floordiv(x, y) * y; }

// [w_floordiv_i]
fn w_floordiv_i(x: i32, y: i32) -> i32 {
  let q: i32 = x / y;
  return select(q, q - 1, q * y != x && ((x < 0) != (y < 0)));
}

// [w_remainder_i]
fn w_remainder_i(x: i32, y: i32) -> i32 { return x - w_floordiv_i(x, y) * y; }

// [w_pair_uniform]
// A number in [0, 1) of a row's key and a column's: 24 bits of a hash.
fn w_pair_uniform(rows: i32, columns: i32) -> f32 {
  var x: u32 = u32(rows ^ columns);
  x = x ^ (x >> 16u);
  x = x * 0x7feb352du;
  x = x ^ (x >> 15u);
  x = x * 0x846ca68bu;
  x = x ^ (x >> 16u);
  return f32(x >> 8u) * 5.9604644775390625e-8;
}
