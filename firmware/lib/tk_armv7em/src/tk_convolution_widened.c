#include "tk_armv7em_convolution.h"
#include "tk_convolution.h"

void tk_convolution_widened(const tk_convolution_t *p, const int8_t *x, int8_t *y, int8_t *scratch)
{
    convolve(p, x, y, scratch, tk_rows_widened_2);
}
