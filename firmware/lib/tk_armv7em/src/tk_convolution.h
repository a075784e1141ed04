/* The driver of convolutions with a window, one copy for each form of the weights. */
#ifndef TK_CONVOLUTION_H
#define TK_CONVOLUTION_H

#include "tk_armv7em_convolution.h"

/* Output positions by pairs, in the order of memory; a pair may straddle two rows. An odd last one is paired with the one
 * before it again, or with itself. `rows_2` is known where this is expanded. */
static inline __attribute__((always_inline)) void convolve(
    const tk_convolution_t *p, const int8_t *x, int8_t *y, int8_t *scratch,
    void (*rows_2)(const tk_rows_t *, const int32_t *, int8_t *, int8_t *))
{
    const int32_t *columns = (const int32_t *)(const void *)scratch;
    const int32_t last = p->positions - 1;
    for (int32_t second = 1; second <= last + 1; second += 2) {
        const int32_t b = second <= last ? second : last;
        const int32_t a = b > 0 ? b - 1 : 0;
        tk_columns_gather(&p->columns, x, a, b, scratch);
        rows_2(&p->rows, columns, y + a * p->rows.out_c, y + b * p->rows.out_c);
    }
}

#endif
