#include "tk_convolution.h"

void tk_convolution_packed(const tk_convolution_t *params, const int8_t *x, int8_t *y, int8_t *scratch)
{
    tk_convolve(params, x, y, scratch, tk_rows_packed_pairs, tk_rows_packed_2);
}
