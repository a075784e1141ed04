/* Fixed-point arithmetic of TFLite Micro's int8 kernels, with its double rounding.
 *
 * A real factor is written as multiplier * 2^(shift - 31), multiplier in 0 .. 2^31 - 1, shift in -31 .. 30. Right shifts of
 * negative numbers are arithmetic, as in every compiler for the targets of this library.
 */
#ifndef TK_REQUANTIZE_H
#define TK_REQUANTIZE_H

#include <stdint.h>

/* a * b / 2^31 rounded to nearest, halves upward. a and b are not both INT32_MIN (no caller here can have that). */
static inline int32_t tk_doubling_high_mul(int32_t a, int32_t b)
{
    const int64_t product = (int64_t)a * b;
    return (int32_t)((product + ((int64_t)1 << 30)) >> 31);
}

/* x / 2^exponent rounded to nearest, halves away from zero; exponent in 0 .. 31.
 *
 * With t = x - (x < 0), or t = x where exponent is 0, the result is t / 2^exponent rounded down plus the first bit that was
 * shifted out. x is not INT32_MIN. */
static inline int32_t tk_rounding_shift_right(int32_t x, int32_t exponent)
{
    const int32_t t = x + ((x >> 31) & -exponent >> 31);
    return (t >> exponent) + (((int32_t)((uint32_t)t << 1) >> exponent) & 1);
}

/* x * multiplier * 2^(shift - 31), rounded after the multiplication and again after the shift to the right. A shift to
 * the left comes first and drops the bits that leave 32, as TFLite Micro's does. */
static inline int32_t tk_requantize(int32_t x, int32_t multiplier, int32_t shift)
{
    const int32_t is_right = shift >> 31;
    const int32_t left = shift & ~is_right;
    const int32_t right = -(shift & is_right);
    const int32_t shifted = (int32_t)((uint32_t)x << left);
    return tk_rounding_shift_right(tk_doubling_high_mul(shifted, multiplier), right);
}

/* x limited to low .. high, both within int8. */
static inline int8_t tk_clamp(int32_t x, int32_t low, int32_t high)
{
    const int32_t limited = x < low ? low : x;
    return (int8_t)(limited > high ? high : limited);
}

#endif
