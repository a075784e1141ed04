#include "tk_pointwise.h"

void tk_pointwise_packed(const tk_pointwise_t *params, const int8_t *x, int8_t *y, int8_t *scratch)
{
    tk_pointwise(params, x, y, scratch, tk_rows_packed_pairs, tk_rows_packed_1);
}
