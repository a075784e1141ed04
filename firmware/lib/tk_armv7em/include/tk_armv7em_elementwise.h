/* Elementwise kernels. Tensors may begin at any address. */
#ifndef TK_ARMV7EM_ELEMENTWISE_H
#define TK_ARMV7EM_ELEMENTWISE_H

#include <stdint.h>

#include "tk_kernels.h"

/* Sum or difference of two tensors of `count` elements as an affine function:
 *
 *     y = a * a_factor / 2^8 + b * b_factor / 2^8 + offset, each quotient rounded down; / 2^TK_AFFINE_SHIFT, rounded down;
 *     limited to out_min .. out_max
 *
 * The code generator has compared all 65,536 pairs of inputs with tk_add or tk_sub; no sum leaves int32. y may be a or b. */
#define TK_AFFINE_SHIFT 20

typedef struct {
    int32_t count;
    int32_t a_factor, b_factor, offset;
    int16_t out_min, out_max;           /* clamp, within -128 .. 127 */
} tk_add_affine_t;

void tk_add_affine(const tk_add_affine_t *params, const int8_t *a, const int8_t *b, int8_t *y);

/* Product of rows: with acc = (a - a_zero) * (b - b_zero),
 *
 *     y = (round(acc * multiplier / 2^31) + addend - (acc < 0)) / 2^shift, rounded down; limited to out_min .. out_max
 *
 * The code generator proves that this is tk_mul. Along the last axis of `shape` both operands advance by one element, or there
 * is only one. y may be an operand that does not repeat. */
typedef struct {
    tk_broadcast_t shape;
    int16_t a_zero, b_zero;
    int16_t out_min, out_max;
    int32_t multiplier, addend, shift;
} tk_mul_dsp_t;

void tk_mul_dsp(const tk_mul_dsp_t *params, const int8_t *a, const int8_t *b, int8_t *y);

/* tk_lookup, eight elements a turn. */
void tk_lookup_dsp(const tk_lookup_t *params, const int8_t *x, int8_t *y);

#endif
