/* Pooling and means, four channels at a time. Tensors have at least 4 channels and may begin at any address. */
#ifndef TK_ARMV7EM_POOLING_H
#define TK_ARMV7EM_POOLING_H

#include <stdint.h>

#include "tk_kernels.h"

/* Most positions that one mean takes: so many int8 add up within int16. */
#define TK_POOL_MAX_AREA 256

/* tk_average_pool_2d for windows of up to TK_POOL_MAX_AREA positions. */
void tk_average_pool_2d_dsp(const tk_pool_2d_t *params, const int8_t *x, int8_t *y);

/* tk_max_pool_2d. */
void tk_max_pool_2d_dsp(const tk_pool_2d_t *params, const int8_t *x, int8_t *y);

/* Mean of x (area, channels) over its rows: with acc = the sum of x less zero_sum,
 *
 *     y = (round(acc * multiplier / 2^31) + addend - (acc < 0)) / 2^shift, rounded down, limited to int8
 *
 * The code generator proves that this is tk_mean. */
typedef struct {
    int32_t area;                       /* at most TK_POOL_MAX_AREA */
    int32_t channels;
    int32_t zero_sum;                   /* area * input zero point */
    int32_t multiplier, addend, shift;
} tk_mean_dsp_t;

void tk_mean_dsp(const tk_mean_dsp_t *params, const int8_t *x, int8_t *y);

#endif
