Elementary functions, written by hand. A function may call those above it.

// [w_exp2]
float w_exp2(float x) { return x < -126.0 ? 0.0 : exp2(x); }

// [w_exp]
float w_exp(float x) { return x < -87.3 ? 0.0 : exp(x); }

// [w_finite]
bool w_finite(float x) { return (floatBitsToUint(x) & 0x7f800000u) != 0x7f800000u; }

// [w_log2]
// Of 0, -inf; of a number below, NaN.
float w_log2(float x) {
  if (x == 0.0) return uintBitsToFloat(0xff800000u);
  return x < 0.0 ? uintBitsToFloat(0x7fc00000u) : (floatBitsToUint(x) == 0x7f800000u ? x : log2(x));
}

// [w_log]
float w_log(float x) { return 0.6931471805599453 * w_log2(x); }

// [w_log1p]
// What rounding takes from 1 + x comes back through the quotient.
float w_log1p(float x) {
  float u = 1.0 + x;
  if (u == 1.0) return x;
  if (abs(x) < 0.03) return x * (1.0 - x * (0.5 - x * (0.3333333333 - x * (0.25 - x * (0.2 - x * 0.1666666667)))));
  return w_log(u) * (x / (u - 1.0));
}

// [w_tanh]
float w_tanh(float x) {
  float a = abs(x);
  if (a < 0.25) {
    float s = x * x;
    return x * (1.0 - s * (0.3333333333 - s * (0.1333333333 - s * (0.05396825397 - s * (0.02186948854 - s * 0.008863235530)))));
  }
  float e = exp2(-2.8853900817779268 * min(a, 20.0));
  float t = (1.0 - e) / (1.0 + e);
  return x < 0.0 ? -t : t;
}

// [w_sigmoid]
float w_sigmoid(float x) {
  float e = w_exp2(-1.4426950408889634 * abs(x));
  float s = e / (1.0 + e);
  return x < 0.0 ? s : 1.0 - s;
}

// [w_softplus]
float w_softplus(float x) { return max(x, 0.0) + w_log1p(w_exp2(-1.4426950408889634 * abs(x))); }

// [w_acosh]
float w_acosh(float x) {
  float t = max(x, 1.0) - 1.0;
  if (t > 1e15) return 0.6931471805599453 * (1.0 + log2(t));
  return w_log1p(t + sqrt(t * (t + 2.0)));
}

// [w_expacosh]
float w_expacosh(float x) {
  float t = max(x, 1.0);
  return 1.0 / (t + sqrt((t - 1.0) * (t + 1.0)));
}

// [w_asin_small]
// asin(x) / x as a function of s = x * x, s at most 1/4.
float w_asin_small(float s) {
  return 1.0 + s * (0.16666667 + s * (0.075 + s * (0.044642857 + s * (0.030381944 + s * (0.022372159 + s * (0.017352764
    + s * (0.01396484 + s * (0.01155180 + s * (0.00976161 + s * (0.00839034 + s * 0.00731253))))))))));
}

// [w_asinsqrt]
float w_asinsqrt(float x) {
  float s = clamp(x, 0.0, 1.0);
  if (s <= 0.25) return sqrt(s) * w_asin_small(s);
  float r = 0.5 * (1.0 - sqrt(s));
  return 1.5707963267948966 - 2.0 * sqrt(r) * w_asin_small(r);
}

// [w_acos]
float w_acos(float x) {
  float c = clamp(x, -1.0, 1.0);
  float h = w_asinsqrt(0.5 * (1.0 - abs(c)));
  return c >= 0.0 ? 2.0 * h : 3.141592653589793 - 2.0 * h;
}

// [w_sign]
float w_sign(float x) { return x > 0.0 ? 1.0 : (x < 0.0 ? -1.0 : 0.0); }

// [w_power]
float w_power(float x, float y) {
  if (y == 0.0 || x == 1.0) return 1.0;
  float r = x == 0.0 ? (y > 0.0 ? 0.0 : uintBitsToFloat(0x7f800000u)) : w_exp2(y * w_log2(abs(x)));
  if (x >= 0.0) return r;
  if (floor(y) != y) return uintBitsToFloat(0x7fc00000u);
  return floor(0.5 * y) * 2.0 == y ? r : -r;
}

// [w_floordiv]
float w_floordiv(float x, float y) {
  float q = floor(x / y);
  float r = x - q * y;
  if (r != 0.0 && ((r < 0.0) != (y < 0.0))) q -= 1.0;
  if (abs(r) >= abs(y)) q += 1.0;
  return q;
}

// [w_remainder]
float w_remainder(float x, float y) { return x - w_floordiv(x, y) * y; }

// [w_floordiv_i]
int w_floordiv_i(int x, int y) {
  int q = x / y;
  return (q * y != x && ((x < 0) != (y < 0))) ? q - 1 : q;
}

// [w_remainder_i]
int w_remainder_i(int x, int y) { return x - w_floordiv_i(x, y) * y; }

// [w_pair_uniform]
// A number in [0, 1) of a row's key and a column's: 24 bits of a hash.
float w_pair_uniform(int rows, int columns) {
  uint x = uint(rows ^ columns);
  x = x ^ (x >> 16u);
  x = x * 0x7feb352du;
  x = x ^ (x >> 15u);
  x = x * 0x846ca68bu;
  x = x ^ (x >> 16u);
  return float(x >> 8u) * 5.9604644775390625e-8;
}
