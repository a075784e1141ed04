#include "tk_pointwise.h"

static void rows_pairs(const tk_rows_t *rows, const int32_t *columns, int8_t *y, int32_t pairs)
{
    for (; pairs > 0; pairs--, columns += rows->depth, y += 2 * rows->out_c) {
        tk_rows_packed_2(rows, columns, y, y + rows->out_c);
    }
}

void tk_pointwise_packed(const tk_pointwise_t *params, const int8_t *x, int8_t *y, int8_t *scratch)
{
    tk_pointwise(params, x, y, scratch, rows_pairs, tk_rows_packed_1);
}
