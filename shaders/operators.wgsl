Functions of whole models' operators, written by hand. A function may call those above it, and those of elementary.wgsl.

// [w_isnan]
fn w_isnan(x: f32) -> bool { return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u; }

// [w_erf]
// Up to 1 an odd polynomial; beyond, exp(-x^2) times one of 1 / (1 + x / 2). Both are fits of degree 7.
fn w_erf(x: f32) -> f32 {
  let a = abs(x);
  let s = x * x;
  if (a < 1.0) {
    return x * (1.1283792 + s * (-0.37612638 + s * (0.11283783 + s * (-0.026865438 + s * (0.0052210535
      + s * (-0.00084843964 + s * (0.00011268254 + s * -0.0000096735903)))))));
  }
  let t = 1.0 / (1.0 + 0.5 * a);
  let q = -0.00016045762 + t * (0.28500554 + t * (0.25910446 + t * (0.34980762 + t * (-0.10769318
    + t * (0.56819129 + t * (-0.47445801 + t * 0.12026211))))));
  let r = select(1.0 - exp2(-1.4426950408889634 * s) * q, 1.0, a > 4.0);
  return select(r, -r, x < 0.0);
}
