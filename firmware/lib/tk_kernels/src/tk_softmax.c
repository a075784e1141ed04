/* A fixed-point number with k integer bits is an int32 that stands for raw * 2^(k - 31); k = 0 covers [-1, 1). */
#include "tk_kernels.h"
#include "tk_requantize.h"

#define INPUT_INTEGER_BITS 5
#define SUM_INTEGER_BITS 12

/* raw * 2^bits, saturated. */
static int32_t shift_left(int32_t raw, int32_t bits)
{
    const int32_t limit = INT32_MAX >> bits;
    if (raw > limit) {
        return INT32_MAX;
    }
    return raw < -limit - 1 ? INT32_MIN : raw * (1 << bits);
}

/* exp(x), 0 integer bits, for x <= 0 with 5 integer bits.
 *
 * x = r - n / 4 with r in [-1/4, 0): exp(r) from the Taylor polynomial of degree 4 around -1/8, then one factor
 * exp(-2^k) for each bit k of n / 4. */
static int32_t exp_of_negative(int32_t x)
{
    static const int32_t factors[] = {1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242};
    const int32_t one_eighth = 1 << 28;
    const int32_t one_third = 715827883;
    const int32_t exp_minus_eighth = 1895147668;
    const int32_t quarter = 1 << (31 - INPUT_INTEGER_BITS - 2);
    if (x == 0) {
        return INT32_MAX;
    }
    const int32_t remainder = (x & (quarter - 1)) - quarter;
    const int32_t t = remainder * (1 << INPUT_INTEGER_BITS) + one_eighth;
    const int32_t t2 = tk_doubling_high_mul(t, t);
    const int32_t t3 = tk_doubling_high_mul(t2, t);
    const int32_t t4_over_4 = tk_rounding_shift_right(tk_doubling_high_mul(t2, t2), 2);
    const int32_t higher = tk_rounding_shift_right(tk_doubling_high_mul(t4_over_4 + t3, one_third) + t2, 1);
    int32_t result = exp_minus_eighth + tk_doubling_high_mul(exp_minus_eighth, t + higher);
    const int32_t quarters = remainder - x;
    for (int32_t k = 0; k < 7; k++) {
        if ((quarters & (quarter << k)) != 0) {
            result = tk_doubling_high_mul(result, factors[k]);
        }
    }
    return result;
}

/* 1 / (1 + x), 0 integer bits, for x in [0, 1) with 0 integer bits: three Newton-Raphson steps from 48/17 - 32/17 d with
 * d = (1 + x) / 2. */
static int32_t reciprocal_of_one_plus(int32_t x)
{
    const int32_t half_denominator = (int32_t)(((int64_t)x + INT32_MAX + 1) / 2);
    const int32_t one = 1 << 29; /* 2 integer bits, as the estimate has */
    int32_t estimate = 1515870810 + tk_doubling_high_mul(half_denominator, -1010580540);
    for (int32_t step = 0; step < 3; step++) {
        const int32_t error = one - tk_doubling_high_mul(half_denominator, estimate);
        estimate += shift_left(tk_doubling_high_mul(estimate, error), 2);
    }
    return shift_left(estimate, 1);
}

static int32_t scaled_exp(const tk_softmax_t *p, int32_t difference)
{
    return exp_of_negative(tk_doubling_high_mul(difference * (1 << p->left_shift), p->multiplier));
}

void tk_softmax(const tk_softmax_t *p, const int8_t *x, int8_t *y)
{
    for (int32_t row = 0; row < p->rows; row++, x += p->channels, y += p->channels) {
        int32_t largest = INT8_MIN;
        for (int32_t i = 0; i < p->channels; i++) {
            largest = x[i] > largest ? x[i] : largest;
        }
        int32_t sum = 0;
        for (int32_t i = 0; i < p->channels; i++) {
            const int32_t difference = x[i] - largest;
            if (difference >= p->diff_min) {
                sum += tk_rounding_shift_right(scaled_exp(p, difference), SUM_INTEGER_BITS);
            }
        }
        /* The maximum itself contributes 1, so that sum is positive. */
        const int32_t headroom = __builtin_clz((uint32_t)sum);
        const int32_t fraction = (int32_t)(((uint32_t)sum << headroom) - ((uint32_t)1 << 31));
        const int32_t scale = reciprocal_of_one_plus(fraction);
        /* From a sum of 512 on it is 32 and more, and every probability is less than half of a step of 1/256. */
        const int32_t shift = SUM_INTEGER_BITS - headroom + 31 - 8;
        for (int32_t i = 0; i < p->channels; i++) {
            const int32_t difference = x[i] - largest;
            int32_t probability = 0;
            if (difference >= p->diff_min && shift <= 31) {
                probability = tk_rounding_shift_right(tk_doubling_high_mul(scale, scaled_exp(p, difference)), shift);
            }
            y[i] = tk_clamp(probability + INT8_MIN, INT8_MIN, INT8_MAX);
        }
    }
}
