/* Inner products of int8 vectors, the innermost loops of the convolutions and of the fully connected layer. */
#ifndef TK_DOT_H
#define TK_DOT_H

#include <stdint.h>

/* Two vectors of `count` weights with two input vectors: acc[0] += w0.x0, acc[1] += w1.x0, acc[2] += w0.x1, acc[3] += w1.x1.
 * Four products from four loads; more would not fit the registers of a Cortex-M. */
static inline __attribute__((always_inline)) void tk_dot_2x2(const int8_t *w0, const int8_t *w1, const int8_t *x0,
                                                             const int8_t *x1, int32_t count, int32_t acc[4])
{
    int32_t a = acc[0], b = acc[1], c = acc[2], d = acc[3];
    int32_t i = 0;
    for (; i + 4 <= count; i += 4) {
#pragma GCC unroll 4
        for (int32_t j = 0; j < 4; j++) {
            a += w0[j] * x0[j];
            b += w1[j] * x0[j];
            c += w0[j] * x1[j];
            d += w1[j] * x1[j];
        }
        w0 += 4;
        w1 += 4;
        x0 += 4;
        x1 += 4;
    }
    for (; i < count; i++) {
        a += *w0 * *x0;
        b += *w1 * *x0;
        c += *w0 * *x1;
        d += *w1 * *x1;
        w0++;
        w1++;
        x0++;
        x1++;
    }
    acc[0] = a;
    acc[1] = b;
    acc[2] = c;
    acc[3] = d;
}

/* Two vectors of weights with one input vector: acc[0] += w0.x, acc[1] += w1.x. */
static inline __attribute__((always_inline)) void tk_dot_2x1(const int8_t *w0, const int8_t *w1, const int8_t *x,
                                                             int32_t count, int32_t acc[2])
{
    int32_t a = acc[0], b = acc[1];
    int32_t i = 0;
    for (; i + 4 <= count; i += 4) {
#pragma GCC unroll 4
        for (int32_t j = 0; j < 4; j++) {
            a += w0[j] * x[j];
            b += w1[j] * x[j];
        }
        w0 += 4;
        w1 += 4;
        x += 4;
    }
    for (; i < count; i++) {
        a += *w0++ * *x;
        b += *w1++ * *x;
        x++;
    }
    acc[0] = a;
    acc[1] = b;
}

/* Sums of two vectors of weights, times the same input value: what a run of padding contributes. */
static inline __attribute__((always_inline)) void tk_sum_2(const int8_t *w0, const int8_t *w1, int32_t value, int32_t count,
                                                           int32_t acc[2])
{
    int32_t a = 0, b = 0;
    for (int32_t i = 0; i < count; i++) {
        a += w0[i];
        b += w1[i];
    }
    acc[0] += a * value;
    acc[1] += b * value;
}

#endif
