// Functions of sixteen lanes, the same formula in every lane. Included after a simd_*.h; see there.
#pragma once

namespace scion::kernels {
namespace {

// exp(r) for |r| <= ln 2 / 2.
SCION_KERNEL F32x16 ExpOfRemainder(F32x16 r) {
  F32x16 p = Set1(1.9875691500e-4f);
  p = MulAdd(p, r, Set1(1.3981999507e-3f));
  p = MulAdd(p, r, Set1(8.3334519073e-3f));
  p = MulAdd(p, r, Set1(4.1665795894e-2f));
  p = MulAdd(p, r, Set1(1.6666665459e-1f));
  p = MulAdd(p, r, Set1(5.0000001201e-1f));
  return Add(MulAdd(p, Mul(r, r), r), Set1(1.0f));
}

// Within 2 units in the last place; exactly 0 below -86.9 (and of -inf), +inf on overflow, NaN of NaN.
SCION_KERNEL F32x16 Exp(F32x16 x) {
  const F32x16 low = Set1(-86.9f);
  const F32x16 high = Set1(89.0f);                // whose exp is too large for a float
  const F32x16 clamped = Min(high, Max(low, x));  // in this order a NaN stays one
  // x = n ln 2 + r: adding 1.5 * 2^23 leaves n, rounded to nearest, in the low bits.
  const F32x16 magic = Set1(12582912.0f);
  const F32x16 shifted = MulAdd(clamped, Set1(1.44269504f), magic);
  const F32x16 n = Sub(shifted, magic);
  F32x16 r = NegMulAdd(n, Set1(0.693359375f), clamped);
  r = NegMulAdd(n, Set1(-2.12194440e-4f), r);
  // times 2^(n-1), then doubled: 2^128 is not a float, but a result near the largest float is one.
  const F32x16 half = Mul(ExpOfRemainder(r), FromBits(ShiftLeft<23>(AddBits(Bits(shifted), 126))));
  return Select(Less(x, low), Set1(0.0f), Add(half, half));
}

// 2^x for x <= 0, within 2 units in the last place: exactly 0 below -126, NaN of NaN.
SCION_KERNEL F32x16 Exp2OfNonPositive(F32x16 x) {
  const F32x16 magic = Set1(12582912.0f);
  const F32x16 shifted = Add(x, magic);
  const F32x16 r = Sub(x, Sub(shifted, magic));  // exact, |r| <= 1/2, where x is not below -126
  F32x16 p = Set1(1.5353361960e-4f);
  p = MulAdd(p, r, Set1(1.3398875017e-3f));
  p = MulAdd(p, r, Set1(9.6184369177e-3f));
  p = MulAdd(p, r, Set1(5.5503323674e-2f));
  p = MulAdd(p, r, Set1(2.4022647738e-1f));
  p = MulAdd(p, r, Set1(6.9314718246e-1f));
  p = MulAdd(p, r, Set1(1.0f));
  const F32x16 power = FromBits(ShiftLeft<23>(AddBits(Bits(shifted), 127)));
  return Select(Less(x, Set1(-126.0f)), Set1(0.0f), Mul(p, power));
}

// x / (1 + exp(-x))
SCION_KERNEL F32x16 Silu(F32x16 x) { return Div(x, Add(Set1(1.0f), Exp(Sub(Set1(0.0f), x)))); }

}  // namespace
}  // namespace scion::kernels
