Elementary functions, written by hand. A function may call those above it.

// [w_exp2]
// 2 to the power x, to a unit in the last place; 0 below 2 to the power -125.5.
float w_exp2(float x) {
  float c = clamp(x, -126.0, 128.6);
  float n = floor(c + 0.5);
  float f = c - n;
  float p = (((((0.00015328872541431338 * f + 0.0013390970416367054) * f + 0.009618500247597694) * f + 0.05550359562039375) * f + 0.24022647738456726) * f + 0.6931471824645996) * f + 1.0;
  float y = 2.0 * p * uintBitsToFloat(uint(int(n) + 126) << 23);
  return x < -125.5 ? 0.0 : y;
}

// [w_exp]
// The part of x between multiples of log 2 is what is left of two differences, the first of which is exact.
float w_exp(float x) {
  float c = clamp(x, -88.0, 89.0);
  float n = floor(1.4426950408889634 * c + 0.5);
  float f = (c - n * 0.693145751953125) - n * 1.42860677e-6;
  float p = (((((0.001382131827995181 * f + 0.00836866907775402) * f + 0.04166825860738754) * f + 0.1666652113199234) * f + 0.4999999403953552) * f + 1.0) * f + 1.0;
  float y = 2.0 * p * uintBitsToFloat(uint(int(n) + 126) << 23);
  return x < -87.0 ? 0.0 : y;
}

// [w_finite]
bool w_finite(float x) { return (floatBitsToUint(x) & 0x7f800000u) != 0x7f800000u; }

// [w_log2]
// Of 0, -inf; of a number below, NaN.
float w_log2(float x) {
  int e = (int(floatBitsToUint(x)) - 0x3f400000) >> 23;
  float t = uintBitsToFloat(floatBitsToUint(x) - (uint(e) << 23)) - 1.0;
  float y = float(e) + t * ((((((((0.07858753949403763 * t - 0.17463845014572144) * t + 0.2162611484527588) * t - 0.24262185394763947) * t + 0.2881852984428406) * t - 0.36058276891708374) * t + 0.4809027314186096) * t - 0.7213483452796936) * t + 1.4426950216293335);
  if (x <= 0.0) return x == 0.0 ? uintBitsToFloat(0xff800000u) : uintBitsToFloat(0x7fc00000u);
  return floatBitsToUint(x) == 0x7f800000u ? x : y;
}

// [w_log]
float w_log(float x) {
  int e = (int(floatBitsToUint(x)) - 0x3f400000) >> 23;
  float t = uintBitsToFloat(floatBitsToUint(x) - (uint(e) << 23)) - 1.0;
  float y = float(e) * 0.6931471805599453 + t * ((((((((0.05408977344632149 * t - 0.12061236053705215) * t + 0.14981293678283691) * t - 0.16822849214076996) * t + 0.1997734010219574) * t - 0.24993479251861572) * t + 0.33333542943000793) * t - 0.5000005960464478) * t + 1.0);
  if (x <= 0.0) return x == 0.0 ? uintBitsToFloat(0xff800000u) : uintBitsToFloat(0x7fc00000u);
  return floatBitsToUint(x) == 0x7f800000u ? x : y;
}

// [w_log1p]
// Near 0 by the series of 2 atanh(x / (2 + x)): what rounding takes from 1 + x would count there.
float w_log1p(float x) {
  float s = x / (2.0 + x);
  float q = s * s;
  float near = 2.0 * s * (1.0 + q * (0.33333333 + q * (0.2 + q * (0.14285714 + q * (0.11111111 + q * 0.090909091)))));
  return abs(x) < 0.5 ? near : w_log(1.0 + x);
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
