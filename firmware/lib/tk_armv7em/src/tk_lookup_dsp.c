#include "tk_armv7em_elementwise.h"

void tk_lookup_dsp(const tk_lookup_t *params, const int8_t *x, int8_t *y)
{
    const int8_t *const zero = params->table + 128;
    for (const int8_t *end = x + (params->count & ~7); x != end; x += 8, y += 8) {
        y[0] = zero[x[0]];
        y[1] = zero[x[1]];
        y[2] = zero[x[2]];
        y[3] = zero[x[3]];
        y[4] = zero[x[4]];
        y[5] = zero[x[5]];
        y[6] = zero[x[6]];
        y[7] = zero[x[7]];
    }
    for (int32_t i = 0; i < (params->count & 7); i++) {
        y[i] = zero[x[i]];
    }
}
