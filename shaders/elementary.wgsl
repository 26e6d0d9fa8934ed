Elementary functions, written by hand. A function may call those above it.

// [w_exp2]
fn w_exp2(x: f32) -> f32 { return select(exp2(x), 0.0, x < -126.0); }

// [w_exp]
fn w_exp(x: f32) -> f32 { return select(exp(x), 0.0, x < -87.3); }

// [w_finite]
fn w_finite(x: f32) -> bool { return (f_bits(x) & 0x7f800000u) != 0x7f800000u; }

// [w_log2]
// Of 0, -inf; of a number below, NaN.
fn w_log2(x: f32) -> f32 {
  if (x == 0.0) { return bits_f(0xff800000u); }
  return select(select(log2(x), x, f_bits(x) == 0x7f800000u), bits_f(0x7fc00000u), x < 0.0);
}

// [w_log]
fn w_log(x: f32) -> f32 { return 0.6931471805599453 * w_log2(x); }

// [w_log1p]
// What rounding takes from 1 + x comes back through the quotient.
fn w_log1p(x: f32) -> f32 {
  let u: f32 = 1.0 + x;
  if (u == 1.0) { return x; }
  if (abs(x) < 0.03) { return x * (1.0 - x * (0.5 - x * (0.3333333333 - x * (0.25 - x * (0.2 - x * 0.1666666667))))); }
  return w_log(u) * (x / (u - 1.0));
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
